"""Cross-entropy of StableMax."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional import stablemax_logits
from hf_softext.losses.base import SoftextLoss


class StableMaxCrossEntropyLoss(SoftextLoss):
    r"""$\ell = \log\sum_k s(z_k) - \log s(z_y)$, $s(z) = 1+z$ above 0 and $1/(1-z)$ below.

    A softmax that cannot collapse: however far ahead the largest logit is, the others keep a share
    that floating point can hold, and the derivative does not become exactly 0.

    Notes:
        Computed as cross-entropy of $g(z) = \mathrm{sign}(z)\log(1+|z|)$, safe for every finite
        logit, in float32; the authors compute in float64. Unlike softmax it is not invariant to a
        constant added to the logits, and its tails are heavy: with a vocabulary of V words, a sure
        prediction needs logits of the order of V.

    Reference:
        L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
        Stability", 2025, arXiv 2501.04697.
    """

    name = "stablemax_ce"
    kinds = frozenset({"multiclass", "token"})

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits (N, C) and labels (N,)."""
        return F.cross_entropy(stablemax_logits(logits), labels, reduction="none")

    def gradient_(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Loss of each row; the logits become their weighted derivative."""
        index = labels[:, None]
        target = stablemax_logits(logits.gather(1, index)[:, 0])
        # s is the larger one of 1 + z and 1 / (1 - min(z, 0)), on both sides of 0
        below = torch.rsub(logits, 1).clamp_(min=1).reciprocal_()
        torch.maximum(logits.add_(1), below, out=logits)
        total = logits.sum(-1)
        # s' = min(s, 1)^2, and s' / s = 1 / (1 + |z|) = e^-|g|
        logits.clamp_(max=1).square_().mul_((weight / total)[:, None])
        logits.scatter_add_(1, index, -(weight * target.abs().neg().exp())[:, None])
        return total.log() - target
