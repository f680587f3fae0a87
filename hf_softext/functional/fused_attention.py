"""The row maps on PyTorch's FlexAttention, which compiles each into one kernel on a GPU."""

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.utils._triton import has_triton

from hf_softext.functional.row_maps import NOISE
from hf_softext.functional.softplus import log_softplus
from hf_softext.functional.stablemax import stablemax_logits

_BLOCK = 128

# the logarithm of each map's positive weight: w / sum w = softmax(log w)
_LOG_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores,
    "softplus": log_softplus,
    "stablemax": stablemax_logits,
}


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    row_map: str,
    options: dict[str, Any] | None = None,
    keep: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    r"""`chunked_attention` by FlexAttention, in memory linear in the length.

    One pass for a map of the form $w(s)/\sum w(s) = \mathrm{softmax}(\log w(s))$. The sharpened
    map takes two: with $\log Z_i$ from softplus attention, its weights are the softmax of $p\log
    u$, $u = N_i e^{\log w(s) - \log Z_i} - O_i$, over $u > 0$. The derivative through $\log Z_i$
    needs no gradient of a captured tensor, which would be a sum of Q K atomic additions:

    $$\frac{\partial L}{\partial \log Z_i} = -p\,O_i \sum_j \frac{b_{ij}}{u_{ij}}
    (\langle G_i, v_j\rangle - \langle G_i, o_i\rangle)$$

    is one more forward pass, with power $p - 1$, for $\sum_j (b/u)\,v$ and $\sum_j b/u$.

    Args:
        query: (B, H, Q, D), every scale already in it.
        key: (B, G, K, D).
        value: (B, G, K, Dv).
        row_map: as for `chunked_attention`.
        options: as for `chunked_attention`.
        keep: bool, broadcastable to (B, H, Q, K) with K written out.
        bias: as for `chunked_attention`.
        softcap: as for `chunked_attention`.

    Returns:
        (B, Q, H, Dv), contiguous.

    Notes:
        No dropout. FlexAttention has no backward pass on CPU.
    """
    keep = keep[(None,) * (4 - keep.dim())].expand(-1, -1, query.shape[2], -1)
    pre = _before_map(bias, softcap)
    mask = _block_mask(keep)

    how = {"block_mask": mask, "scale": 1.0, "enable_gqa": query.shape[1] != key.shape[1]}

    def with_log_total(score_mod: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        output, aux = _flex()(
            query, key, value, score_mod=score_mod, return_aux=AuxRequest(lse=True), **how
        )
        return output, aux.lse

    if row_map == "softplus_sharpened":
        output = _sharpened(with_log_total, pre, keep, **(options or {}))
    else:
        log_weight = _LOG_WEIGHTS[row_map]
        output = _flex()(
            query,
            key,
            value,
            score_mod=lambda s, b, h, i, j: log_weight(pre(s, b, h, i, j)),
            **how,
        )
    return output.transpose(1, 2).contiguous()


def _sharpened(
    attend: Callable[..., tuple[Tensor, Tensor]],
    pre: Callable[..., Tensor],
    keep: Tensor,
    power: float,
    shift: float,
    free_rows: int,
    degenerate: str,
) -> Tensor:
    plain, log_total = attend(lambda s, b, h, i, j: log_softplus(pre(s, b, h, i, j)))
    count = keep.sum(dim=-1).expand(log_total.shape).to(log_total.dtype).contiguous()
    offset = shift * (count > free_rows).to(count.dtype)
    # a row that sees nothing has -inf, which would make the gradient of a bias NaN
    total = log_total.detach().masked_fill(count == 0, 0.0)
    noise = NOISE.get(count.dtype, 1e-6)

    def sharpen(to_power: float) -> Callable[..., Tensor]:
        # as a tensor: two values of a number in one closure make the compiler treat it as unknown
        exponent = total.new_full((), to_power)

        def score_mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            weight = (log_softplus(pre(s, b, h, i, j)) - total[b, h, i]).exp()
            excess = count[b, h, i] * weight - offset[b, h, i]
            positive = excess > noise
            logarithm = torch.where(positive, excess, 1.0).log()
            return torch.where(positive, exponent * logarithm, -math.inf)

        return score_mod

    sharp, log_powers = attend(sharpen(power))
    flat = (log_powers == -math.inf)[..., None]
    if torch.is_grad_enabled() and log_total.requires_grad:
        with torch.no_grad():
            lower, log_lower = attend(sharpen(power - 1.0))
            # sum_j b/u
            ratio = (log_lower - log_powers).exp().masked_fill(flat[..., 0], 0.0)
        factor = (power * offset * ratio)[..., None]
        sharp = _ThroughTotal.apply(sharp, log_total, factor, torch.where(flat, 0.0, lower))
    fallback = plain if degenerate == "softplus" else torch.zeros_like(plain)
    return torch.where(flat, fallback, torch.where(flat, 0.0, sharp))


class _ThroughTotal(torch.autograd.Function):
    """The identity in the output, with the derivative that reaches it through log Z."""

    @staticmethod
    def forward(ctx, output, log_total, factor, lower):
        ctx.save_for_backward(output, factor, lower)
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad):
        output, factor, lower = ctx.saved_tensors
        through = -(factor * grad * (lower - output)).sum(dim=-1)
        return grad, through.to(factor.dtype), None, None


def _before_map(bias: Tensor | None, softcap: float | None) -> Callable[..., Tensor]:
    """Soft-cap and bias of a score."""
    shape = () if bias is None else (1,) * (4 - bias.dim()) + tuple(bias.shape)
    addend = None if bias is None else bias.reshape(shape)

    def pre(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        if addend is None:
            return s
        at = [x if size > 1 else x * 0 for x, size in zip((b, h, i, j), shape, strict=True)]
        return s + addend[at[0], at[1], at[2], at[3]]

    return pre


def _block_mask(keep: Tensor) -> BlockMask:
    """Which blocks are empty, full or in between; from the mask itself, in one pass over it."""
    batch, heads, queries, keys = keep.shape
    rows, columns = (-(-size // _BLOCK) for size in (queries, keys))
    padded = F.pad(keep, (0, columns * _BLOCK - keys, 0, rows * _BLOCK - queries))
    blocks = padded.view(batch, heads, rows, _BLOCK, columns, _BLOCK)
    full, some = blocks.all(dim=5).all(dim=3), blocks.any(dim=5).any(dim=3)

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
        return chosen.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return keep[b if batch > 1 else b * 0, h if heads > 1 else h * 0, i, j]

    return BlockMask.from_kv_blocks(
        *listed(some & ~full),
        *listed(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(queries, keys),
    )


@cache
def _flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def fuses(query: Tensor, value: Tensor) -> bool:
    """Whether `fused_attention` serves tensors of this kind, forward and backward.

    It does on CUDA, from head dim 16, below float64, where Triton is there. The environment
    variable SOFTEXT_FUSED=0 says no for all.
    """
    return (
        query.is_cuda
        and query.dtype != torch.float64
        and min(query.shape[-1], value.shape[-1]) >= 16
        and os.environ.get("SOFTEXT_FUSED") != "0"
        and has_triton()
    )
