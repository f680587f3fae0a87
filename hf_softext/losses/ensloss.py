"""EnsLoss: another calibrated loss at every step, drawn as its derivative."""

import math
import random
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_softext.losses.base import SoftextLoss

# keeps a derivative below 0, which is what makes a convex loss calibrated
_LEAST = 1e-6


class EnsLoss(SoftextLoss):
    r"""$\frac1N \sum_i g_i m_i$, where $m = (2y - 1) z$ and g is drawn anew: a random convex loss.

    $$g = \mathrm{sort}(\max(-r, -1)), \qquad r = (1 + \lambda\epsilon)_+^{1/\lambda}, \quad
    \epsilon \sim N(0, 1)$$

    ($r = e^\epsilon$ for $\lambda = 0$). The smallest margin gets the steepest derivative, as in
    every convex loss; margins m above 1 have $g/m$, a tail that grows slowly; and $10^{-6}$ is
    taken off. Only the derivative means something: the value in training may be negative, and is
    nothing to stop early by.

    For labels of shape (N, C) each label has a draw and an order of its own (ours), and the mean is
    over all.

    Args:
        boxcox_lambda: $\lambda$, of the inverse Box-Cox transform. 0, the default, is the authors';
            half of the derivatives are then those of the hinge.
        resample_every: after so many epochs each, $\lambda \sim U(-1, 1)$ anew. None, the default,
            keeps it; the authors tried 10, 20 and 50.
        seed: of all draws, with the number of the step and the process.
        **common: those of `SoftextLoss`.

    Raises:
        ValueError: in a batch, labels other than 0 and 1.

    Notes:
        In eval mode it is the logistic loss, as a number to report.

        The order is within a micro-batch and a process: accumulation is not the larger batch. Not
        compiled whole: the draw leaves the graph. A device has random numbers of its own, so that
        a run repeats exactly on the same kind of device.

    Reference:
        B. Dai, "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in
        Classification", 2025, arXiv 2409.00908.
    """

    name = "ensloss"
    kinds = frozenset({"binary", "multilabel"})
    decomposable = False
    stateful = True

    step: Tensor
    current_lambda: Tensor

    def __init__(
        self,
        boxcox_lambda: float = 0.0,
        resample_every: int | None = None,
        seed: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        if not math.isfinite(boxcox_lambda):
            raise ValueError(f"boxcox_lambda={boxcox_lambda!r} must be finite.")
        if resample_every is not None and resample_every < 1:
            raise ValueError(f"resample_every={resample_every!r} must be at least 1, or None.")
        self.boxcox_lambda = boxcox_lambda
        self.resample_every = resample_every
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer(
            "current_lambda", torch.tensor(float(boxcox_lambda), dtype=torch.float64)
        )

    def on_epoch(self, epoch: int) -> None:
        """Draw $\\lambda$ of this epoch, the same on every process."""
        period = 0 if self.resample_every is None else epoch // self.resample_every
        # a string is hashed the same way by every Python
        drawn = random.Random(f"lambda {self.seed} {period}").uniform(-1, 1)
        self.current_lambda.fill_(drawn if period else self.boxcox_lambda)

    def synchronize(self) -> None:
        """The step of all processes becomes the largest, so that none draws again what it drew."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.step, dist.ReduceOp.MAX)

    def over_batch(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """A scalar, for logits and labels (N, C)."""
        if not self.training:
            return F.binary_cross_entropy_with_logits(logits, labels)
        if bool(((labels != 0) & (labels != 1)).any()):
            raise ValueError(
                f"labels: {self.name!r} is for 0 and 1; there are others in the batch."
            )
        margins = (2 * labels - 1) * logits
        derivative = derivatives(margins.detach(), self.draw(margins), self.current_lambda.item())
        return (derivative * margins).mean()

    def draw(self, like: Tensor) -> Tensor:
        """Standard normal numbers of this step and process, in the shape of `like`."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        key = random.Random(f"{self.seed} {self.step.item()} {rank}").getrandbits(63)
        self.step += 1
        generator = torch.Generator(like.device).manual_seed(key)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def derivatives(margins: Tensor, normal: Tensor, boxcox_lambda: float) -> Tensor:
    r"""Of a random loss at the margins, column by column, from standard normal numbers.

    Args:
        margins: (N, C).
        normal: (N, C).
        boxcox_lambda: $\lambda$.

    Returns:
        (N, C), from $-1 - 10^{-6}$ to $-10^{-6}$: not falling as the margin grows to 1.
    """
    if boxcox_lambda == 0:
        r = normal.exp()
    else:
        # 1 + lambda z below 0 counts as 0, whose power is 0, or infinite
        r = (torch.log1p((boxcox_lambda * normal).clamp(min=-1)) / boxcox_lambda).exp()
    steepest_first = (-r).clamp(min=-1).sort(dim=0).values
    rank = margins.argsort(dim=0, stable=True).argsort(dim=0)
    derivative = steepest_first.gather(0, rank)
    return torch.where(margins > 1, derivative / margins, derivative) - _LEAST
