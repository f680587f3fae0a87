"""Comp-sum losses: one family from the sum of exponentials over cross-entropy to the mean absolute
error."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional import shifted_exp_
from hf_softext.losses.base import SoftextLoss


class _CompSum(SoftextLoss):
    """What the members share: everything but what they are called by."""

    kinds = frozenset({"multiclass", "token"})

    tau: float
    max_exponent: float | None = None

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits (N, C) and labels (N,)."""
        return self._of(-F.cross_entropy(logits, labels, reduction="none"))[0]

    def gradient_(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Loss of each row; the logits become their weighted derivative."""
        index = labels[:, None]
        target = logits.gather(1, index)[:, 0]
        largest, total = shifted_exp_(logits)
        losses, factor = self._of(target - largest - total.log())
        factor = weight * factor
        logits.mul_((factor / total)[:, None]).scatter_add_(1, index, -factor[:, None])
        return losses

    def _of(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """The loss for the log-probability of the label, and what its derivative is to
        cross-entropy's."""
        if self.tau == 1:
            return -log_p, torch.ones_like(log_p)
        power = self.tau - 1
        exponent = power * log_p
        kept = exponent if self.max_exponent is None else exponent.clamp(max=self.max_exponent)
        factor = kept.exp()
        losses = torch.expm1(kept) / -power
        if self.max_exponent is not None:
            # the tangent, so that the derivative does not end where the exponent does
            losses = losses - factor * (exponent - kept) / power
        return losses, factor


class CompSumLoss(_CompSum):
    r"""$\ell = \frac{1 - p_y^{\tau-1}}{\tau-1}$, with $p$ the softmax of the logits.

    $\tau = 0$ is the sum of exponentials $1/p_y - 1$, $\tau \to 1$ cross-entropy, $1 < \tau < 2$
    generalised cross-entropy with $q = \tau - 1$, $\tau = 2$ the mean absolute error $1 - p_y$.
    The derivative is cross-entropy's times $p_y^{\tau-1}$: above 1 rows that the model finds
    unlikely, as wrongly labelled ones are, count for less; below 1 they count for more.

    Args:
        tau: $\tau \ge 0$; 1, the default, is cross-entropy.
        max_exponent: where $(\tau-1)\log p_y$ exceeds it, the loss goes on as a straight line in
            $\log p_y$: no row counts for more than e to this power. For $\tau < 1$, where the
            formula exceeds float32 at $-\log p_y > 88/(1-\tau)$. None, the default, leaves the
            formula as it is. Not in the paper.
        **common: those of `SoftextLoss`.

    Notes:
        Evaluated as $-\mathrm{expm1}((\tau-1)\log p_y)/(\tau-1)$, exact also close to $\tau = 1$.
        At $\tau$ near 2 and many classes, training hardly starts: at $p_y = 1/C$ the derivative is
        $C^{1-\tau}$ of cross-entropy's.

    Reference:
        A. Mao, M. Mohri, Y. Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and
        Applications", 2023, arXiv 2304.07288.
    """

    name = "comp_sum"

    def __init__(self, tau: float = 1.0, max_exponent: float | None = None, **common: Any):
        super().__init__(**common)
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau={tau!r} must be at least 0, and finite.")
        if max_exponent is not None and not 0 < max_exponent < float("inf"):
            raise ValueError(f"max_exponent={max_exponent!r} must be above 0, or None for no end.")
        self.tau = tau
        self.max_exponent = max_exponent


class GceLoss(_CompSum):
    r"""$\ell = \frac{1 - p_y^{q}}{q}$: `comp_sum` with $\tau = 1 + q$.

    Between cross-entropy, $q \to 0$, and the mean absolute error, $q = 1$.

    Args:
        q: above 0, at most 1; 0.7 is the paper's value.
        **common: those of `SoftextLoss`.

    Reference:
        Z. Zhang, M. R. Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks
        with Noisy Labels", 2018, arXiv 1805.07836.
    """

    name = "gce"

    def __init__(self, q: float = 0.7, **common: Any):
        super().__init__(**common)
        if not 0 < q <= 1:
            raise ValueError(f"q={q!r} must be above 0 and at most 1; for 0 use 'ce'.")
        self.q = q
        self.tau = 1 + q


class MaeLoss(_CompSum):
    r"""$\ell = 1 - p_y$: `comp_sum` with $\tau = 2$.

    Half the mean absolute error between the probabilities and the one-hot label, which is
    $2(1 - p_y)$. Robust to wrong labels, and slow to train with many classes: see `CompSumLoss`.

    Reference:
        A. Ghosh, H. Kumar, P. S. Sastry, "Robust Loss Functions under Label Noise for Deep Neural
        Networks", 2017, arXiv 1712.09482.
    """

    name = "mae"
    tau = 2.0
