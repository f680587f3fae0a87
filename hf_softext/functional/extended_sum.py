"""Sums of exponentials as (mantissa, exponent) pairs, which can be added in any order with no
maximum known in advance."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExtendedSum:
    r"""A sum of exponentials that cannot overflow: $m\,e^n$ for each element of two tensors.

    $$(m_1, n_1) + (m_2, n_2) = (m_1 e^{n_1 - N} + m_2 e^{n_2 - N},\ N), \qquad N = \max(n_1, n_2)$$

    Addition is commutative, associative up to rounding, and has the identity $(0, -\infty)$. So
    pieces of a long row (chunks of a vocabulary, threads, processes) are summed apart and merged:

        total = ExtendedSum.of(first_chunk) + ExtendedSum.of(second_chunk)
        total.logsumexp()

    Shards of processes are gathered, stacked and merged by `reduce`; or, without a gather, with
    two all-reduces (of values: collectives have their own rules for gradients):

        exponent = part.exponent.clone()
        torch.distributed.all_reduce(exponent, torch.distributed.ReduceOp.MAX)
        mantissa = part.mantissa_at(exponent)
        torch.distributed.all_reduce(mantissa)
        total = ExtendedSum(mantissa, exponent)

    Attributes:
        mantissa: (...), float32 or float64, between 1 and the number of terms; 0 in an empty sum.
        exponent: (...), same dtype, without a gradient; -inf in an empty sum.

    Notes:
        The paper has powers of 2 and integer exponents, which its kernel makes from the bits of a
        float. In torch exp costs the same, and to base e the exponent is the largest term itself:
        exact for every finite float, also for the -3.4e38 of a masked score, whose integer
        exponent to base 2 no float32 holds.

        Infinities and NaN as in `torch.logsumexp`: terms of -inf add nothing, +inf makes the sum
        infinite, NaN makes it NaN.

    Reference:
        M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", 2020, arXiv 2001.04438.
    """

    mantissa: Tensor
    exponent: Tensor

    @classmethod
    def of(cls, x: Tensor, dim: int = -1) -> "ExtendedSum":
        r"""$\sum_i e^{x_i}$ over a dimension.

        Args:
            x: floating point; half precision is computed in float32.
            dim: the dimension that is summed; it may be empty.

        Notes:
            Autograd keeps `x` and not its exponentials, which backward computes again.
        """
        wide = x if x.dtype == torch.float64 else x.float()
        if wide.shape[dim] == 0:
            mantissa = wide.sum(dim)
            return cls(mantissa, torch.full_like(mantissa, -torch.inf))
        exponent = wide.detach().amax(dim)
        mantissa = _SumExp.apply(wide, _finite(exponent), dim)
        return cls(mantissa, exponent)

    @classmethod
    def zero(cls, shape: Any, **options: Any) -> "ExtendedSum":
        """The empty sum.

        Args:
            shape: of the pair.
            **options: dtype and device, as for `torch.zeros`.
        """
        mantissa = torch.zeros(shape, **options)
        return cls(mantissa, torch.full_like(mantissa, -torch.inf))

    def __add__(self, other: "ExtendedSum") -> "ExtendedSum":
        exponent = torch.maximum(self.exponent, other.exponent)
        return ExtendedSum(self.mantissa_at(exponent) + other.mantissa_at(exponent), exponent)

    def add(self, x: Tensor, dim: int = -1) -> "ExtendedSum":
        """With the exponentials of a further chunk, as in `of`; `self` is unchanged."""
        return self + ExtendedSum.of(x, dim)

    def reduce(self, dim: int) -> "ExtendedSum":
        """Merge the sums along a dimension of the pair, such as the stacked pairs of shards."""
        exponent = self.exponent.amax(dim, keepdim=True)
        mantissa = self.mantissa_at(exponent).sum(dim)
        return ExtendedSum(mantissa, exponent.squeeze(dim))

    def mantissa_at(self, exponent: Tensor) -> Tensor:
        """The mantissa of the same sum at another exponent, which must not be smaller."""
        return self.mantissa * (self.exponent - _finite(exponent)).exp()

    def logsumexp(self) -> Tensor:
        r"""$n + \log m$: -inf for the empty sum. Its gradient is the softmax of all terms."""
        return self.exponent + self.mantissa.log()


def _finite(exponent: Tensor) -> Tensor:
    # inf - inf would be NaN; any finite shift is right where the result is 0 or infinite anyway
    return exponent.masked_fill(exponent.isinf(), 0.0)


class _SumExp(torch.autograd.Function):
    """Sum of exp(x - shift) that keeps x instead of the exponentials."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(x, shift)
        ctx.dim = dim
        return (x - shift.unsqueeze(dim)).exp_().sum(dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, shift = ctx.saved_tensors
        terms = (x - shift.unsqueeze(ctx.dim)).exp()
        return terms * grads[0].unsqueeze(ctx.dim), None, None
