"""GPTQ as its paper and the usual implementations have it, written apart from the package's own.

A row, or a run of `group` columns of it, has a grid of 2^b levels that passes through zero,

    w = s (q - z),    s = (hi - lo) / (2^b - 1),    z = round(-lo / s),

whose ends are the smallest and largest weight, zero included, times the same share. With H the Gram
matrix of the inputs and H^-1 = U^T U, column j is rounded and its error e = (w - q) / U_jj taken
from the columns that follow: w_k <- w_k - e U_jk.

Reference: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers, 2022, arXiv 2210.17323. Act-order, static
groups and the search of the ranges are those of the authors' repository, but that the search
weighs errors by their squares.
"""

import torch
from torch import Tensor

SHARES = [1 - step / 100 for step in range(0, 71, 2)]


def grid(weight: Tensor, bits: int, clip: bool) -> tuple[Tensor, Tensor]:
    """Step and zero point of each row, (O, 1) each; steps are rounded to float16 as in a file.

    Args:
        weight: (O, N) float32.
        bits: b.
        clip: whether the share of the range that loses least is searched; else it is 1.
    """
    low = weight.amin(1, keepdim=True).clamp(max=0)
    high = weight.amax(1, keepdim=True).clamp(min=0)
    empty = low == high
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    best = torch.full_like(low, torch.inf)
    step, zero = torch.empty_like(low), torch.empty_like(low)
    for share in SHARES if clip else [1.0]:
        tried = (share * (high - low) / (2**bits - 1)).half().float()
        point = (-share * low / tried).round()
        loss = (nearest(weight, tried, point, bits) - weight).square().sum(1, keepdim=True)
        better = loss < best
        best = torch.where(better, loss, best)
        step, zero = torch.where(better, tried, step), torch.where(better, point, zero)
    return step, zero


def nearest(weight: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Every weight rounded by itself, (O, N)."""
    return step * ((weight / step).round().add(zero).clamp(0, 2**bits - 1) - zero)


def gptq_reference(
    weight: Tensor,
    gram: Tensor | None,
    bits: int,
    act_order: bool = False,
    clip: bool = False,
    group: int = 0,
    damp: float = 0.01,
) -> Tensor:
    """The quantized weight.

    Args:
        weight: (O, I) float32.
        gram: (I, I) Gram matrix of the inputs; None rounds every weight by itself.
        bits: b.
        act_order: whether columns with larger inputs come first.
        clip: whether ranges are searched.
        group: columns that share a grid, in the order of the weight ("static groups"); 0 is all.
        damp: what is added to the diagonal of H, as a share of its mean.

    Returns:
        (O, I) float32.
    """
    rest, columns = weight.clone(), weight.shape[1]
    group = group or columns
    grids = [grid(part, bits, clip) for part in weight.split(group, 1)]
    order = torch.arange(columns)
    if gram is None:
        return torch.cat(
            [nearest(w, *g, bits) for w, g in zip(rest.split(group, 1), grids, strict=True)], 1
        )
    hessian = gram.double()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    rest[:, dead] = 0
    if act_order:
        order = hessian.diagonal().argsort(descending=True)
    hessian = hessian[order][:, order]
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).float()
    rest = rest[:, order]
    for j, column in enumerate(order.tolist()):
        rounded = nearest(rest[:, j, None], *grids[column // group], bits)
        error = (rest[:, j, None] - rounded) / upper[j, j]
        rest[:, j, None] = rounded
        rest[:, j + 1 :] -= error @ upper[j, None, j + 1 :]
    return rest[:, order.argsort()]
