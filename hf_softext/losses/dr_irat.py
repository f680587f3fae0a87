"""Adversarial training in which the rows that do worst count most."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hf_softext.losses._extras import like_logits
from hf_softext.losses._rows import select_rows
from hf_softext.losses.base import SoftextLoss
from hf_softext.losses.registry import get_loss


class DrIratLoss(SoftextLoss):
    r"""The worst case over weights of the rows, of a loss of the worst case over inputs.

    $$L = \max_w\ \sum_i w_i\,\ell_i - r\sum_i w_i\log(M w_i) =
    r\log\frac1M\sum_i e^{\ell_i/r}, \qquad w_i = \frac{e^{\ell_i/r}}{\sum_j e^{\ell_j/r}}$$

    over weights of sum 1, $\ell_i$ being another loss at the perturbed logits of row i. $r \to
    \infty$ is the mean, $r \to 0$ the largest loss.

    Args:
        base: the loss of a row: a name, or a mapping of "name" and arguments; "ce" by default. It
            must be a sum over rows for "multiclass" problems and need nothing else.
        r: above 0, in units of the loss; 1 by default (ours).
        ema: $\eta$, from above 0 to 1: the mean of $e^{\ell/r}$ that weights are divided by is kept
            over steps, $u \leftarrow (1-\eta)\,u + \eta\,\text{mean}_i\,e^{\ell_i/r}$, so that they
            compare rows with more than their micro-batch; then the reported value is $r \log u$.
            None, the default, is each micro-batch for itself, as 1 is.
        **common: those of `SoftextLoss`, without class_weight.

    Notes:
        Needs `perturbed_logits`, (..., C). In evaluation without them it is the mean of the base
        loss at the logits; with them, L of the batch, with no average over steps.

        All in logarithms: losses of 1e4 stay finite. No gradient goes through the weights. M and
        the mean are over all processes, which therefore must call it equally often; a process
        without a row that counts has a value of 0.

        Of the paper this is the weighting. Its lower level, an attack with a barrier through whose
        solution it differentiates, is left to the attack, without that derivative. Rows with wrong
        labels do worst too, and are amplified. The equations are reconstructed from the paper's
        abstract and reviews.

    Reference:
        D. Sow, S. Lin, Z. Wang, Y. Liang, "Doubly Robust Instance-Reweighted Adversarial Training",
        2024, arXiv 2308.00311.
    """

    name = "dr_irat"
    kinds = frozenset({"multiclass"})
    decomposable = False
    stateful = True
    collective = True
    needs = frozenset({"perturbed_logits"})

    log_u: Tensor | None

    def __init__(
        self,
        base: str | dict[str, Any] = "ce",
        r: float = 1.0,
        ema: float | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        if not 0 < r < math.inf:
            raise ValueError(f"r={r!r} must be above 0, and finite.")
        if ema is not None and not 0 < ema <= 1:
            raise ValueError(f"ema={ema!r} must be above 0 and at most 1, or None.")
        loss = get_loss(base) if isinstance(base, str) else get_loss(**base)
        fits = loss.decomposable and "multiclass" in loss.kinds
        if not fits or loss.needs or loss.fits or loss.stateful:
            raise ValueError(
                f"base={base!r} must be a sum over rows for multiclass problems, and need nothing "
                "but logits and labels: 'ce' or 'comp_sum', say."
            )
        self.base = base
        self.r = r
        self.ema = ema
        self.loss = loss
        # log 0: nothing seen
        self.register_buffer("log_u", None if ema is None else torch.tensor(-math.inf))

    def over_batch(
        self,
        logits: Tensor,
        labels: Tensor,
        perturbed_logits: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """A scalar for logits and perturbed_logits (N, C) and labels (N,)."""
        if perturbed_logits is None and len(logits) == 0:
            return logits.sum()
        if perturbed_logits is None:
            return self.loss.per_sample(logits, labels).mean()
        perturbed = like_logits("perturbed_logits", perturbed_logits, logits)
        losses = self.loss.per_sample(perturbed, labels)
        with torch.no_grad():
            scaled = losses.detach() / self.r
            log_mean, share = _over_processes(scaled) if self.training else _of_batch(scaled)
            log_u = self._average(log_mean)
            weight = (scaled - log_u).exp() * share
        surrogate = (weight * losses).sum()
        if len(losses) == 0:
            # called to meet the other processes; the logits get a gradient of 0
            return surrogate + logits.sum()
        # the value of the objective, the gradient of the weighted sum
        return surrogate + (self.r * log_u - surrogate).detach()

    def _average(self, log_mean: Tensor) -> Tensor:
        if self.log_u is None or self.ema is None or not self.training:
            return log_mean
        old = self.log_u.to(log_mean)
        rest = -math.inf if self.ema == 1 else math.log1p(-self.ema)
        new = torch.logaddexp(old + rest, log_mean + math.log(self.ema))
        new = torch.where(old == -math.inf, log_mean, new)
        # what is not finite would never leave again
        self.log_u.copy_(torch.where(new.isfinite(), new, old))
        return new

    def attack_objective(self, logits: Tensor, labels: Tensor, perturbed_logits: Tensor) -> Tensor:
        r"""What an attack maximises: $\sum_i\ell_i$ at the perturbed logits.

        Args:
            logits: (..., C), of the inputs as they are; they do not count.
            labels: (...), integers; rows of `ignore_index` do not count.
            perturbed_logits: (..., C).

        Returns:
            A scalar: the sum, so that the gradient of a row does not depend on the others.
        """
        given = {"perturbed_logits": perturbed_logits}
        with torch.autocast(logits.device.type, enabled=False):
            rows = select_rows(self, logits.detach(), labels, extras=given)
            name, given = next(iter(rows.extras.items()))
            perturbed = like_logits(name, given, rows.logits)
            return self.loss.per_sample(perturbed, rows.labels).sum()


def _of_batch(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the mean of the exponentials, and what a row is of the mean."""
    share = scaled.new_tensor(1 / max(len(scaled), 1))
    return scaled.logsumexp(0) + share.log(), share


def _over_processes(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """The same over the rows of all processes, of which gradients will be averaged."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return _of_batch(scaled)
    processes = dist.get_world_size()
    own = torch.stack([scaled.logsumexp(0), scaled.new_tensor(len(scaled))])
    found = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(found, own)
    sums, rows = torch.stack(found).unbind(1)
    total = rows.sum()
    return sums.logsumexp(0) - total.log(), processes / total
