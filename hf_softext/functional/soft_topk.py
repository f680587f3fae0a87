"""Differentiable membership in the k largest entries of a row."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# the bracket of y is log k + log(C - k) wide: halved so often it is below 0.1 for every C that fits
# in memory, and Newton's steps square what is left of the error
_HALVINGS, _NEWTON = 9, 4


def soft_topk(x: Tensor, k: int | Tensor, alpha: float = 2.0, *, log: bool = False) -> Tensor:
    r"""$\sigma(\alpha(x_l + t))$ with the $t$ of each row for which they sum to $k$.

    $$\sum_{l=1}^{C} \sigma(\alpha(x_l + t)) = k$$

    The derivative goes through $t$ (implicit function theorem), in closed form. With $u =
    \alpha(x + t)$, $v = \sigma(u)\sigma(-u)$, $q = v / \sum_l v_l$ and the derivative $g$ of what
    follows,

    $$dx = \alpha\Bigl(v g - q \sum_l v_l g_l\Bigr), \qquad
    dx_{\log} = w - q \sum_l w_l, \quad w = \alpha\,\sigma(-u)\,g$$

    Args:
        x: (..., C), floating point; half precision is computed in float32.
        k: from 1 to C - 1: an integer, or integers of shape (...), one for each row.
        alpha: how hard the choice is, > 0; in units of 1 over those of x. 2 as the authors'.
        log: the logarithm of the membership, exact where that itself is 0 in floating point.

    Returns:
        Same shape and dtype. Rows sum to k (their exponentials do, with `log`); adding a constant
        to a row changes nothing; $\alpha \to \infty$ gives 1 for the k largest and 0 for the
        others. Differentiable once, in reverse mode.

    Raises:
        ValueError: k outside 1 to C - 1 or not of the shape of the rows, or alpha not above 0 and
            finite.
        TypeError: x that is no floating point, or k that is no integer.

    Notes:
        Let c be halfway between the entries k and k + 1 in descending order, and $y = \alpha(t +
        c)$. Then $-\log(C - k) \le y \le \log k$: the terms that k + 1 and below add are as many as
        those that k and above lack, each sum lies between its largest term and their number times
        that, and $\log\sigma(y - d) - \log\sigma(-y - d)$, odd in y, has a slope of at least 1.
        The width of this bracket does not depend on x, unlike the authors', which fails for long
        rows of nearly equal scores. Both sums are compared by their logarithms, so that t is right
        where every membership is 0 or 1 to the last digit, and q with it.

        Entries may be -inf (membership 0) as long as more than k are not. NaN makes its row NaN.

    Reference:
        N. Gupta, D. Khatri, A. S. Rawat, S. Bhojanapalli, P. Jain, I. Dhillon, "Dual-encoders for
        Extreme Multi-label Classification", 2024, arXiv 2310.10636; bracket and root finder are
        ours.
    """
    if not x.is_floating_point() or x.dim() == 0:
        raise TypeError(f"x is {x.dtype} with {x.dim()} dimensions: pass floats, at least one row.")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha={alpha!r} must be above 0, and finite.")
    wide = x if x.dtype == torch.float64 else x.float()
    return _SoftTopk.apply(wide, _each_row(k, x), alpha, log).to(x.dtype)


def _each_row(k: int | Tensor, x: Tensor) -> Tensor:
    rows, classes = x.shape[:-1], x.shape[-1]
    each = torch.as_tensor(k, device=x.device)
    if each.is_floating_point() or each.dtype == torch.bool:
        raise TypeError(f"k is {each.dtype}, it must be an integer or integers.")
    if each.dim() > 0 and each.shape != rows:
        raise ValueError(f"k of shape {tuple(each.shape)} must be that of the rows, {tuple(rows)}.")
    out = f"k must be from 1 to {classes - 1} for rows of {classes} entries"
    if not isinstance(k, Tensor):
        if not 1 <= k < classes:
            raise ValueError(f"k={k!r}: {out}.")
    elif not torch.compiler.is_compiling() and bool(((each < 1) | (each >= classes)).any()):
        raise ValueError(f"k from {int(each.min())} to {int(each.max())}: {out}.")
    return each.expand(rows).unsqueeze(-1)


def _exponents(x: Tensor, k: Tensor, alpha: float) -> Tensor:
    """u = alpha (x + t)."""
    ordered = x.sort(dim=-1, descending=True).values
    inside = torch.arange(x.shape[-1], device=x.device) < k
    middle = (ordered.gather(-1, k - 1) + ordered.gather(-1, k)) / 2
    ordered = alpha * (ordered - middle)
    # what an entry is wrong by: 1 - membership of the first k, membership of the others
    sign = 1.0 - 2.0 * inside.to(x.dtype)

    def excess(y: Tensor) -> tuple[Tensor, Tensor]:
        """log of what the others add less log of what the first k lack; and its derivative."""
        z = sign * (ordered + y)
        wrong, right = F.logsigmoid(z), F.logsigmoid(-z).exp()
        value, slope = torch.zeros_like(y), torch.zeros_like(y)
        for part, factor in ((~inside, 1.0), (inside, -1.0)):
            terms = wrong.masked_fill(~part, float("-inf"))
            total = terms.logsumexp(-1, keepdim=True)
            value = value + factor * total
            slope = slope + ((terms - total).exp() * right).sum(-1, keepdim=True)
        return value, slope

    low, high = -(x.shape[-1] - k).to(x.dtype).log(), k.to(x.dtype).log()
    for _ in range(_HALVINGS):
        half = (low + high) / 2
        above = excess(half)[0] > 0
        low, high = torch.where(above, low, half), torch.where(above, half, high)
    y = (low + high) / 2
    for _ in range(_NEWTON):
        value, slope = excess(y)
        y = y - value / slope
    return alpha * (x - middle) + y


class _SoftTopk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, alpha: float, log: bool) -> Tensor:
        u = _exponents(x, k, alpha)
        ctx.save_for_backward(u)
        ctx.alpha, ctx.log = alpha, log
        return F.logsigmoid(u) if log else u.sigmoid()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        log_v = F.logsigmoid(u) + F.logsigmoid(-u)
        # not v / sum(v), which is 0 / 0 where every membership is 0 or 1
        share = log_v.softmax(-1)
        direct = ctx.alpha * grads[0] * ((-u).sigmoid() if ctx.log else log_v.exp())
        return direct - share * direct.sum(-1, keepdim=True), None, None, None
