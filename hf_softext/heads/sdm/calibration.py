"""What calibration rows give: outputs, similarities, and the region found on them."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_softext.functional.empirical_cdf import ClassLists, class_lists
from hf_softext.functional.sdm import rescaled_similarity
from hf_softext.heads.sdm import universal
from hf_softext.heads.sdm.canonical import of_class
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.region import Region, find_region


class Calibration(NamedTuple):
    """Calibration rows under a support.

    Attributes:
        labels: (N,), int64.
        predictions: (N,), int64.
        similarity: (N,), float32, q.
        squared_distance: (N,), float32.
        probs: (N, C), float32, SDM(z').
    """

    labels: Tensor
    predictions: Tensor
    similarity: Tensor
    squared_distance: Tensor
    probs: Tensor

    @property
    def num_labels(self) -> int:
        """C."""
        return self.probs.shape[1]

    def output_lists(self) -> ClassLists:
        """Outputs of the true class, of the rows of every class."""
        return class_lists(of_class(self.probs, self.labels), self.labels, self.num_labels)


class Scores(NamedTuple):
    """What the region is looked for in.

    Attributes:
        outputs: (N,), of the true class.
        similarity: (N,), rescaled; counted in the effective sample size.
        valid_similarity: (N,), the same, but 0 where a row is out of distribution.
        labels: (N,), int64.
        num_labels: C.
    """

    outputs: Tensor
    similarity: Tensor
    valid_similarity: Tensor
    labels: Tensor
    num_labels: int

    def region(self, alpha: float) -> Region:
        """See `find_region`."""
        return find_region(self.outputs, self.valid_similarity, self.labels, alpha, self.num_labels)


def plain_scores(rows: Calibration) -> Scores:
    """Of the paper's estimator."""
    q = rescaled_similarity(rows.similarity, of_class(rows.probs, rows.predictions))
    return Scores(of_class(rows.probs, rows.labels), q, q, rows.labels, rows.num_labels)


def rescaled_scores(rows: Calibration, weight: Tensor) -> tuple[Scores, Tensor]:
    """Of the universal estimator; and its outputs, (N, C)."""
    v = universal.output_quantiles(rows.output_lists(), rows.probs)
    q, outputs, flipped = universal.rescale(v, rows.similarity, rows.predictions, weight)
    valid = q.masked_fill(flipped | (q.floor() <= 0), 0.0)
    return Scores(of_class(outputs, rows.labels), q, valid, rows.labels, rows.num_labels), outputs


def fit_rescaling(
    rows: Calibration, generator: torch.Generator, config: SdmConfig, progress: bool
) -> dict[str, Tensor]:
    """The universal estimator's weight, scores and medians on the rows of one split."""
    v = universal.output_quantiles(rows.output_lists(), rows.probs)
    scaled = of_class(v, rows.predictions) * (2 + rows.similarity).log()
    weight = universal.train_rescaling(
        v,
        scaled,
        rows.labels,
        generator,
        epochs=config.rescaler_epochs,
        patience=config.rescaler_patience,
        learning_rate=config.rescaler_learning_rate,
        batch_size=config.rescaler_batch_size,
        progress=progress,
    )
    scores, outputs = rescaled_scores(rows, weight)
    # the largest similarity is the logarithm of 2 + max_q
    bins = int(torch.tensor(2.0 + config.max_q).log()) + 1
    medians = universal.bin_medians(
        outputs, scores.similarity, scores.valid_similarity == 0, rows.predictions, bins
    )
    return {
        "rescaling_weight": weight,
        "split_outputs": scores.outputs,
        "split_similarity": scores.valid_similarity,
        "split_labels": rows.labels,
        "split_medians": medians,
    }


def spread(state: dict[str, Tensor], best: Region, alpha: float) -> tuple[Tensor, Tensor]:
    """The universal estimator's similarity and offsets with the spread over splits.

    Args:
        state: "split_outputs", "split_similarity" and "split_labels", (J, N), and "split_medians",
            (J, C, T).
        best: of the split that is kept.
        alpha: to hold.
    """
    medians = state["split_medians"]
    columns = (state[f"split_{name}"] for name in ("outputs", "similarity", "labels"))
    found = []
    for outputs, similarity, labels in zip(*columns, strict=True):
        region = find_region(outputs, similarity, labels, alpha, medians.shape[1])
        found.append(float(region.min_similarity))
    least = universal.spread_over_splits(float(best.min_similarity), found, alpha)
    offsets = universal.offsets_over_splits(medians, alpha)
    return torch.tensor(least, device=medians.device), offsets
