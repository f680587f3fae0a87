"""LDR-KL: the worst case over the labels, held near the uniform one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional import shifted_exp_
from hf_softext.losses.base import SoftextLoss

NORMALIZATIONS = ("none", "l1", "softplus")


class LdrKlLoss(SoftextLoss):
    r"""$\ell = \max_{p} \sum_k p_k d_k - \lambda\,\mathrm{KL}(p, \text{uniform})$ over the labels.

    $$\ell = \lambda\Bigl(\log\sum_k e^{d_k/\lambda} - \log C\Bigr), \qquad
    d_k = f_k - f_y + c\,[k \ne y]$$

    A margin $c$ and a temperature $\lambda$ in cross-entropy: with $\lambda = 1$, $c = 0$ it is
    cross-entropy less log C; $\lambda \to 0$ gives the hinge $\max_k d_k$ of Crammer and Singer,
    $\lambda \to \infty$ the mean of $d$. It may be negative, down to $-\lambda \log C$.

    Args:
        lam: $\lambda > 0$. 1, the default of the authors' class; their experiments have 10 for the
            adaptive `aldr_kl`.
        margin: $c \ge 0$. 2, the default of the authors' class; their experiments have 0.1.
        normalize: what becomes of the scores first, see `normalize_scores`. The authors' code has
            "softplus"; "none", the default, is the formula above. Normalised scores have no scale,
            so that the weights may grow without bound, and no derivative in place: not for a
            large vocabulary.
        **common: those of `SoftextLoss`.

    Notes:
        As $\lambda \log C$ is taken off, the value has an absolute error of some $\lambda \log C$
        roundings; the derivative, $\mathrm{softmax}(d/\lambda)$ less 1 at the label, has not.

    Reference:
        D. Zhu, Y. Ying, T. Yang, "Label Distributionally Robust Losses for Multi-class
        Classification: Consistency, Robustness and Adaptivity", 2023, arXiv 2112.14869.
    """

    name = "ldr_kl"
    kinds = frozenset({"multiclass", "token"})

    def __init__(
        self, lam: float = 1.0, margin: float = 2.0, normalize: str = "none", **common: Any
    ):
        super().__init__(**common)
        if not 0 < lam < math.inf:
            raise ValueError(f"lam={lam!r} must be above 0, and finite.")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin={margin!r} must be at least 0, and finite.")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize={normalize!r} must be one of {', '.join(NORMALIZATIONS)}.")
        self.lam = lam
        self.margin = margin
        self.normalize = normalize

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits (N, C) and labels (N,)."""
        return ldr_kl(normalize_scores(logits, self.normalize), labels, self.lam, self.margin)

    def gradient_(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Loss of each row; the logits become their weighted derivative."""
        if not self.in_place:
            raise ValueError(f"normalize={self.normalize!r} has no derivative in place.")
        index, lam, classes = labels[:, None], self.lam, logits.shape[-1]
        target = logits.gather(1, index)[:, 0]
        # the margin of all the others, less a constant that is put back below
        logits.scatter_add_(1, index, logits.new_full(index.shape, -self.margin))
        largest, total = shifted_exp_(logits, lam)
        logits.mul_((weight / total)[:, None]).scatter_add_(1, index, -weight[:, None])
        return lam * (total.log() - math.log(classes)) + (largest - target) + self.margin

    @property
    def in_place(self) -> bool:
        """Whether `gradient_` is there: for scores that are not normalised."""
        return self.normalize == "none"


def ldr_kl(scores: Tensor, labels: Tensor, lam: float | Tensor, margin: float) -> Tensor:
    r"""The formula of `LdrKlLoss`, with a temperature for all rows or one for each.

    $$\ell = \lambda\Bigl(\log\sum_k e^{d_k/\lambda} - \log C\Bigr), \qquad
    d_k = f_k - f_y + c\,[k \ne y]$$

    Args:
        scores: (N, C), float32 or float64.
        labels: (N,), int64.
        lam: $\lambda > 0$, or (N,): one for each row.
        margin: $c$.

    Returns:
        (N,).
    """
    index, classes = labels[:, None], scores.shape[-1]
    margins = torch.full_like(scores, margin).scatter_(1, index, 0.0)
    differences = scores - scores.gather(1, index) + margins
    scaled = differences / (lam[:, None] if isinstance(lam, Tensor) else lam)
    return lam * (scaled.logsumexp(-1) - math.log(classes))


def normalize_scores(logits: Tensor, how: str) -> Tensor:
    r"""Scores on a scale of their own row's, as the authors' code has them.

    Args:
        logits: (N, C), float32 or float64.
        how: "none": $f$; "l1": $f_k / \frac1C\sum_j|f_j|$, what the authors do in ALDR;
            "softplus": the same of softplus(f), what they do in LDR.

    Returns:
        (N, C). The division is part of the derivative. A row whose mean is 0, where the authors'
        code has NaN, is left as it is.

    Raises:
        ValueError: an unknown `how`.
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"how={how!r} must be one of {', '.join(NORMALIZATIONS)}.")
    if how == "none":
        return logits
    scores = F.softplus(logits) if how == "softplus" else logits
    mean = scores.abs().mean(-1, keepdim=True)
    return scores / torch.where(mean == 0, 1.0, mean)
