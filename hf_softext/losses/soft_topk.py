"""The positives of a row belong to its k largest scores, softly."""

from typing import Any

from torch import Tensor

from hf_softext.functional.soft_topk import soft_topk
from hf_softext.losses.base import SoftextLoss


class SoftTopkLoss(SoftextLoss):
    r"""Minus the mean log membership of the positives in the k largest scores.

    $$\ell = -\frac{1}{n}\sum_{j \in P} y_j \log\sigma(\alpha(z_j + t)), \qquad
    \sum_l \sigma(\alpha(z_l + t)) = k$$

    P are the n labels above 0 of a row. See `hf_softext.functional.soft_topk`.

    Args:
        k: how many places there are, from 1 to below the number of labels. 5, the default, as the
            authors'.
        alpha: how hard the choice is, > 0. 2, the default, as the authors'.
        **common: those of `SoftextLoss`; no `class_weight`, as a row has several classes.

    Notes:
        With more positives than k the loss stays above 0: n memberships of $k / n$ each are the
        best there is. A row without a positive has the loss 0 and no derivative. A label between 0
        and 1 weighs its term.

    Reference:
        N. Gupta, D. Khatri, A. S. Rawat, S. Bhojanapalli, P. Jain, I. Dhillon, "Dual-encoders for
        Extreme Multi-label Classification", 2024, arXiv 2310.10636.
    """

    name = "soft_topk"
    kinds = frozenset({"multilabel"})

    def __init__(self, k: int = 5, alpha: float = 2.0, **common: Any):
        super().__init__(**common)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r} must be an integer of at least 1.")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha={alpha!r} must be above 0, and finite.")
        self.k = k
        self.alpha = alpha

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits and labels (N, C).

        Raises:
            ValueError: no more than k labels.
        """
        positive = labels > 0
        losses = -labels * soft_topk(logits, self.k, self.alpha, log=True)
        # where, not a product: a label that is no candidate has a score, and a log, of -inf
        losses = losses.masked_fill(~positive, 0.0)
        return losses.sum(-1) / positive.sum(-1).clamp(min=1)
