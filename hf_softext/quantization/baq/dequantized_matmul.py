"""A product with a quantized weight that is never dense as a whole.

The weight is decoded a few outputs at a time, for the gradient a few columns at a time, in parts
that stay in the processor's cache. Nothing dense is kept for the backward pass.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_softext.quantization.baq.grid import step_and_offset
from hf_softext.quantization.baq.packing import Run, unpack_runs

# weights decoded at a time: what fits into a cache, or what keeps an accelerator busy
_ON_CPU, _ELSEWHERE = 2**21, 2**25


class Layout(NamedTuple):
    """What the planes of a weight are, as plain numbers.

    Attributes:
        runs: the columns by their number of levels, without those of one level.
        factors: for each run, what the row ranges are multiplied by.
        zero_point: whether the grid passes through zero.
    """

    runs: tuple[Run, ...]
    factors: tuple[float, ...]
    zero_point: bool

    @property
    def columns(self) -> int:
        """How many columns are not zero."""
        return sum(run.columns for run in self.runs)


def decode(planes: Tensor, ranges: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The columns of a weight that are not zero, sorted as its planes are.

    Args:
        planes: (P, ceil(O / 8)) uint8.
        ranges: (O, 1) or (O, 2) range of each row's grid.
        layout: what the planes are.
        dtype: of the result; float32 comes before it.

    Returns:
        (columns, O).
    """
    rows, start = len(ranges), 0
    decoded = torch.empty(layout.columns, rows, dtype=dtype, device=planes.device)
    runs = unpack_runs(planes, layout.runs)
    for (run, codes), factor in zip(runs, layout.factors, strict=True):
        step, offset = step_and_offset(ranges, factor, run.levels, layout.zero_point)
        values = codes[:, :rows].to(torch.float32).mul_(step).add_(offset)
        decoded[start : start + run.columns] = values
        start += run.columns
    return decoded


def output_parts(
    planes: Tensor, ranges: Tensor, layout: Layout, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """The same for some outputs after others, (columns, n) each."""
    size = max(_part(planes) // max(layout.columns, 1) // 8, 1)
    for start in range(0, planes.shape[1], size):
        outputs = slice(8 * start, min(8 * (start + size), len(ranges)))
        part = planes[:, start : start + size]
        yield outputs, decode(part, ranges[outputs], layout, dtype)


def column_parts(
    planes: Tensor, ranges: Tensor, layout: Layout, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The same for some columns after others, (n, O) each."""
    size = max(_part(planes) // max(len(ranges), 1), 1)
    start = 0
    for run, factor in zip(layout.runs, layout.factors, strict=True):
        for done in range(0, run.columns, size):
            some = Run(run.levels, min(size, run.columns - done))
            end = start + some.columns * some.width
            part = layout._replace(runs=(some,), factors=(factor,))
            yield decode(planes[start:end], ranges, part, dtype)
            start = end


def _part(planes: Tensor) -> int:
    # a compiler fuses what it is given whole, and would unroll the parts
    if torch.compiler.is_compiling():
        return planes.numel() * 8 + 8
    return _ON_CPU if planes.device.type == "cpu" else _ELSEWHERE


def dequantized_matmul(
    x: Tensor, bias: Tensor | None, planes: Tensor, ranges: Tensor, layout: Layout
) -> Tensor:
    """x W + bias for W as `decode` gives it, x (N, columns); gives (N, O)."""
    parts = [
        x @ weight if bias is None else torch.addmm(bias[outputs], x, weight)
        for outputs, weight in output_parts(planes, ranges, layout, x.dtype)
    ]
    return torch.cat(parts, 1)


class DequantizedMatmul(torch.autograd.Function):
    """`dequantized_matmul`, differentiable in x and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, planes: Tensor, ranges: Tensor, layout: Layout
    ) -> Tensor:
        """Keeps the planes."""
        ctx.save_for_backward(planes, ranges)
        ctx.layout = layout
        return dequantized_matmul(x, bias, planes, ranges, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Decodes once more."""
        planes, ranges = ctx.saved_tensors
        for_x = for_bias = None
        if ctx.needs_input_grad[0]:
            weights = column_parts(planes, ranges, ctx.layout, grad.dtype)
            for_x = torch.cat([grad[:, :0], *(grad @ weight.T for weight in weights)], 1)
        if ctx.needs_input_grad[1]:
            for_bias = grad.sum(0)
        return for_x, for_bias, None, None, None
