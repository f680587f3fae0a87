"""What the training rows say about a prediction: similarity and distance."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_softext.functional.empirical_cdf import ClassLists, class_lists, fraction_below
from hf_softext.functional.nearest_rows import leading_matches

# as a share of a vector's squared length: far above its rounding, far below what differs
_SAME = 1e-10


class Support(NamedTuple):
    """The rows that predictions are compared with.

    Attributes:
        exemplars: (N, M), float32.
        labels: (N,), int64; what is not from 0 to C - 1 never matches, and so ends runs.
        predictions: (N,), int64.
    """

    exemplars: Tensor
    labels: Tensor
    predictions: Tensor

    @property
    def classes(self) -> Tensor:
        """(N,), the class of rows that were predicted correctly, and -1 for the others."""
        return torch.where(self.labels == self.predictions, self.labels, -1)


class Evidence(NamedTuple):
    """Of some rows.

    Attributes:
        similarity: (B,), float32, q.
        squared_distance: (B,), float32, to the nearest support row.
        nearest: (B,), int64, that row.
    """

    similarity: Tensor
    squared_distance: Tensor
    nearest: Tensor


def find_evidence(
    exemplars: Tensor,
    predictions: Tensor,
    support: Support,
    *,
    max_q: int,
    index: str = "torch",
    are_support: bool = False,
) -> Evidence:
    """Look rows up in the support.

    Similarity q: how many of the nearest support rows, from the nearest on and without a break,
    were predicted correctly and as this row.

    Args:
        exemplars: (B, M), float32.
        predictions: (B,), int64.
        support: of N rows.
        max_q: k is the smaller of this and N; q is at most k, and k - 1 for support rows.
        index: "torch" or "faiss".
        are_support: the rows are the support rows, in their order. None is its own neighbour: it is
            left out by its number, where the authors leave out the nearest, which may be a twin.
    """
    limit = min(max_q, len(support.labels)) - int(are_support)
    own = torch.arange(len(exemplars), device=exemplars.device) if are_support else None
    search = leading_matches
    if index == "faiss":
        from hf_softext.heads.sdm.faiss_index import leading_matches as search
    matches, nearest, distance = search(
        exemplars, predictions, support.exemplars, support.classes, exclude=own, limit=limit
    )
    # at an infinite distance no row is nearer than another
    return Evidence(matches.float().masked_fill(distance.isinf(), 0.0), distance, nearest)


def are_twins(exemplars: Tensor, squared_distance: Tensor) -> Tensor:
    """(B,), bool: rows at a place where the support has one.

    A row's vector differs by rounding from batch to batch, so that the distance need not be 0.

    Args:
        exemplars: (B, M).
        squared_distance: (B,), to the nearest row.
    """
    return squared_distance <= _SAME * exemplars.square().sum(1)


def distance_lists(evidence: Evidence, labels: Tensor, num_labels: int) -> ClassLists:
    """The distances of every true class, of rows with a similarity above 0."""
    kept = evidence.similarity > 0
    return class_lists(evidence.squared_distance[kept], labels[kept], num_labels)


def distance_quantile(lists: ClassLists, squared_distance: Tensor) -> Tensor:
    r"""$d = \min_c\,(1 - \#\{s \in S_c : s < d_0\} / |S_c|)$.

    Args:
        lists: $S_c$; a class without distances gives d = 0.
        squared_distance: (B,), $d_0$. Squared, as in the authors' code: only ranks matter.

    Returns:
        (B,), float32: 1 for a duplicate, 0 farther away than all of any one class.
    """
    return 1 - fraction_below(lists, squared_distance).amax(1)
