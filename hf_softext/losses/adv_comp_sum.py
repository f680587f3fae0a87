"""Comp-sum loss with a price on what a perturbation may change."""

import math
from typing import Any

import torch
from torch import Tensor

from hf_softext.losses._extras import like_logits
from hf_softext.losses._rows import select_rows
from hf_softext.losses.base import SoftextLoss
from hf_softext.losses.comp_sum import CompSumLoss


class AdvCompSumLoss(SoftextLoss):
    r"""The smooth adversarial comp-sum loss.

    $$\ell = \Phi^\tau\Big(\sum_{k\ne y} e^{(z_k - z_y)/\rho}\Big) +
    \nu\,\lVert\Delta(z', y) - \Delta(z, y)\rVert_2, \qquad
    \Delta(z, y) = (z_y - z_k)_{k\ne y}$$

    with $z'$ the logits of the input that changes $\Delta$ most, within the ball that is allowed,
    and $\Phi^\tau$ of `comp_sum`, which is given $z/\rho$.

    Args:
        tau: $\tau \ge 0$, as for `comp_sum`; 1, the default and the one of the paper's experiments
            (recalled), is cross-entropy.
        rho: $\rho$ above 0, the margin at which a row counts as right; 1 by default (recalled).
        nu: $\nu \ge 0$, the price; 1 by default (recalled). The theory asks for at least
            $\sqrt{C-1}/\rho$.
        **common: those of `SoftextLoss`.

    Notes:
        Needs `perturbed_logits`, (..., C), which an attack finds by ascending `attack_objective`
        and a forward pass in training mode gives a gradient. The attack has to start beside the
        input: at it the norm has a minimum, and the derivative given there is 0. In evaluation
        without them it is the first term.

        Adding a number to all logits changes nothing; a change of the label's own counts C - 1
        times. The formula is recalled from the paper, not read.

    Reference:
        A. Mao, M. Mohri, Y. Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and
        Applications", 2023, arXiv 2304.07288, adversarial part.
    """

    name = "adv_comp_sum"
    kinds = frozenset({"multiclass"})
    needs = frozenset({"perturbed_logits"})

    def __init__(self, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0, **common: Any):
        super().__init__(**common)
        if not 0 < rho < math.inf:
            raise ValueError(f"rho={rho!r} must be above 0, and finite.")
        if not 0 <= nu < math.inf:
            raise ValueError(f"nu={nu!r} must be at least 0, and finite.")
        self.tau = tau
        self.rho = rho
        self.nu = nu
        self.clean = CompSumLoss(tau)

    def per_sample(
        self,
        logits: Tensor,
        labels: Tensor,
        perturbed_logits: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """(N,) for logits and perturbed_logits (N, C) and labels (N,)."""
        losses = self.clean.per_sample(logits / self.rho, labels)
        if perturbed_logits is None:
            return losses
        return losses + self.nu * _margin_change(logits, labels, perturbed_logits)

    def attack_objective(self, logits: Tensor, labels: Tensor, perturbed_logits: Tensor) -> Tensor:
        r"""What an attack maximises: $\sum_i\lVert\Delta(z'_i, y_i) - \Delta(z_i, y_i)\rVert_2$.

        Args:
            logits: (..., C), of the inputs as they are; no gradient goes through them.
            labels: (...), integers; rows of `ignore_index` do not count.
            perturbed_logits: (..., C).

        Returns:
            A scalar: the sum, so that the gradient of a row does not depend on the others.
        """
        given = {"perturbed_logits": perturbed_logits}
        with torch.autocast(logits.device.type, enabled=False):
            rows = select_rows(self, logits.detach(), labels, extras=given)
            return _margin_change(rows.logits, rows.labels, **rows.extras).sum()


def _margin_change(logits: Tensor, labels: Tensor, perturbed_logits: Tensor) -> Tensor:
    change = like_logits("perturbed_logits", perturbed_logits, logits) - logits
    # the label's own entry is 0, so that it need not be taken out
    margins = change.gather(1, labels[:, None]) - change
    # its derivative at 0 is 0, not NaN
    return torch.linalg.vector_norm(margins, dim=-1)
