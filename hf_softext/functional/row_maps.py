r"""Maps from a row of scores to a row of weights, with their derivatives in closed form.

They serve `chunked_attention`, which holds a few whole rows at a time, so that no running maximum
or sum is needed. A score of $-\infty$ hides an entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# takes dL/dP, which it may overwrite, and returns dL/ds
Pullback = Callable[[Tensor], Tensor]

# below this softplus(s) equals e^s to rounding
_EXPONENTIAL_BELOW = {torch.float32: -17.0, torch.float64: -37.0}
# powers of ratios smaller than e to this are 0: next to the largest, which is 1, they are far below
# rounding, and denormal numbers slow the multiplications that follow by an order of magnitude
_NEGLIGIBLE_BELOW = {torch.float32: -60.0, torch.float64: -600.0}
# N * a - 1 cancels to this much noise; rows whose largest value is not above it carry no order
NOISE = {torch.float32: 1e-6, torch.float64: 1e-14}


class RowMap:
    """Weights of visible scores, row by row.

    A subclass computes in place where it can: rows pass through it by the million.
    """

    @classmethod
    def encode(cls) -> list[float]:
        """The arguments of the constructor as numbers, from the parameters by their names."""
        return []

    def weights(self, scores: Tensor, count: Tensor) -> tuple[Tensor, Pullback]:
        """Map rows.

        Args:
            scores: (..., K), float32 or float64, -inf where hidden; not changed.
            count: (..., 1), number of visible entries, in the dtype of the scores.

        Returns:
            Weights (..., K), exactly 0 where hidden, rows summing to 1 or 0; and the function that
            takes the gradient of the weights to the gradient of the scores.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `weights`.")


def _normalize(positive: Tensor, slope: Callable[[], Tensor]) -> tuple[Tensor, Pullback]:
    r"""$P_j = w_j/Z$, $Z = \sum_l w_l$, and $ds_j = \frac{w'_j}{Z}(dP_j - \sum_l dP_l P_l)$."""
    total = positive.sum(dim=-1, keepdim=True)
    # a row with nothing in it stays 0, as does its gradient; NaN passes
    inverse = torch.where(total == 0, 0.0, total.reciprocal())
    weights = positive.mul_(inverse)

    def pullback(grad: Tensor) -> Tensor:
        along = (grad * weights).sum(dim=-1, keepdim=True)
        return grad.sub_(along).mul_(slope()).mul_(inverse)

    return weights, pullback


class Softmax(RowMap):
    r"""$w(s) = e^s$: what the other maps replace."""

    def weights(self, scores: Tensor, count: Tensor) -> tuple[Tensor, Pullback]:
        """See `RowMap`."""
        largest = scores.amax(dim=-1, keepdim=True)
        positive = (scores - largest.masked_fill(largest == -math.inf, 0.0)).exp_()
        total = positive.sum(dim=-1, keepdim=True)
        weights = positive.mul_(torch.where(total == 0, 0.0, total.reciprocal()))

        def pullback(grad: Tensor) -> Tensor:
            along = (grad * weights).sum(dim=-1, keepdim=True)
            return grad.sub_(along).mul_(weights)

        return weights, pullback


class Softplus(RowMap):
    r"""$w(s) = \log(1 + e^s)$, $w'(s) = \sigma(s)$.

    In a row whose scores all lie below -17 (float64: -37), $w(s) = w'(s) = e^s$ to rounding, and
    both are multiplied by $e^{-\max s}$: without that the row would underflow.
    """

    def weights(self, scores: Tensor, count: Tensor) -> tuple[Tensor, Pullback]:
        """See `RowMap`."""
        largest = scores.amax(dim=-1, keepdim=True)
        low = (largest < _EXPONENTIAL_BELOW[scores.dtype]) & (largest > -math.inf)
        any_low = bool(low.any())
        # beyond the threshold softplus(s) = s to rounding, in either dtype
        positive = F.softplus(scores, threshold=40)
        if any_low:
            positive = torch.where(low, (scores - largest).exp_(), positive)

        def slope() -> Tensor:
            sigmoid = torch.sigmoid(scores)
            return torch.where(low, (scores - largest).exp_(), sigmoid) if any_low else sigmoid

        return _normalize(positive, slope)


class Stablemax(RowMap):
    r"""$w(s) = \frac{1 + \max(s, 0)}{1 + \max(-s, 0)}$, $w'(s) = (1 + \max(-s, 0))^{-2}$.

    This is 1 + s above 0 and 1 / (1 - s) below it.
    """

    def weights(self, scores: Tensor, count: Tensor) -> tuple[Tensor, Pullback]:
        """See `RowMap`."""
        below = scores.clamp(max=0.0).neg_().add_(1.0).reciprocal_()
        positive = scores.clamp(min=0.0).add_(1.0).mul_(below)
        return _normalize(positive, below.square)


@dataclass(frozen=True)
class SharpenedSoftplus(RowMap):
    r"""Softplus weights $a$, sharpened: $u_j = \max(N a_j - O, 0)$, $b_j = u_j^p / \sum_l u_l^p$.

    Args:
        power: p.
        shift: O, for rows with more than `free_rows` visible entries.
        free_rows: see `hf_softext.functional.sharpen`.
        fall_back: whether rows without order keep $a$; else they are 0.
    """

    power: float
    shift: float
    free_rows: float
    fall_back: bool

    @classmethod
    def encode(cls, power: float, shift: float, free_rows: float, degenerate: str) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `RowMap`."""
        return [power, shift, free_rows, float(degenerate == "softplus")]

    def weights(self, scores: Tensor, count: Tensor) -> tuple[Tensor, Pullback]:
        """See `RowMap`."""
        softplus, softplus_pullback = Softplus().weights(scores, count)
        offset = self.shift * (count > self.free_rows).to(scores.dtype)
        excess = (softplus * count).sub_(offset).clamp_(min=0.0)
        largest = excess.amax(dim=-1, keepdim=True)
        flat = largest <= NOISE[scores.dtype]
        any_flat = bool(flat.any())
        inverse = torch.where(flat, 0.0, largest.reciprocal())
        # zeros are kept from log and exp, which take ten times as long for 0 and for -inf
        least = _NEGLIGIBLE_BELOW[scores.dtype]
        ratios = (excess * inverse).clamp_(min=math.exp(least / self.power))
        powers = ratios.log_().mul_(self.power).exp_()
        powers = F.threshold(powers, math.exp(least + 0.5), 0.0, inplace=True)
        total = powers.sum(dim=-1, keepdim=True)
        weights = powers.mul_(torch.where(flat, 0.0, total.reciprocal()))
        if any_flat and self.fall_back:
            weights = torch.where(flat, softplus, weights)

        def pullback(grad: Tensor) -> Tensor:
            along = (grad * weights).sum(dim=-1, keepdim=True)
            # where there is no excess the weight is 0, and any divisor will do
            ratio = weights / excess.masked_fill_(excess == 0, 1.0)
            through = (grad - along).mul_(ratio).mul_(count * self.power)
            if any_flat:
                through = torch.where(flat, grad if self.fall_back else 0.0, through)
            return softplus_pullback(through)

        return weights, pullback


ROW_MAPS: dict[str, type[RowMap]] = {
    "softmax": Softmax,
    "softplus": Softplus,
    "softplus_sharpened": SharpenedSoftplus,
    "stablemax": Stablemax,
}
