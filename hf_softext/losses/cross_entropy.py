"""Cross-entropy, the baseline of all the others."""

from typing import Any

import torch
from torch import Tensor

from hf_softext.functional.shifted_exp import shifted_exp_
from hf_softext.losses.base import SoftextLoss


class CrossEntropyLoss(SoftextLoss):
    r"""$\ell = \log\sum_k e^{z_k} - (1-\epsilon)\,z_y - \epsilon\,\frac1C\sum_k z_k$.

    Args:
        label_smoothing: $\epsilon$, the share of the target that is spread over the classes, from
            0 (the default) to below 1.
        **common: those of `SoftextLoss`.

    Notes:
        With class weights and smoothing, a row's weight is that of its class; torch's weighs the
        smoothed part by the classes that it goes to.

    Reference:
        A. Mao, M. Mohri, Y. Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and
        Applications", 2023, arXiv 2304.07288.
    """

    name = "ce"
    kinds = frozenset({"multiclass", "token"})

    def __init__(self, label_smoothing: float = 0.0, **common: Any):
        super().__init__(**common)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing!r} must be from 0 to below 1.")
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits (N, C) and labels (N,)."""
        return torch.nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )

    def gradient_(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Loss of each row; the logits become their weighted derivative."""
        index, smoothing, classes = labels[:, None], self.label_smoothing, logits.shape[-1]
        target = (1 - smoothing) * logits.gather(1, index)[:, 0]
        if smoothing:
            target = target + smoothing * logits.mean(-1)
        largest, total = shifted_exp_(logits)
        logits.mul_((weight / total)[:, None])
        if smoothing:
            logits.sub_((smoothing / classes * weight)[:, None])
        logits.scatter_add_(1, index, -(1 - smoothing) * weight[:, None])
        return largest + total.log() - target
