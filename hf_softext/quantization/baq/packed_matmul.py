"""A product with a quantized weight as torch's own int4 kernel on CPU computes it.

The kernel multiplies bfloat16 inputs with 4-bit numbers q as (q - 8) s + z, with s and z in
bfloat16. A step rounded to that would be off by up to 0.4 %. So s = 1 and z = 1/2 throughout, which
are exact, and the steps stay outside: step_oj = R_o c_j, with R_o the range of row o and
c_j = f_j / (L_j - 1) the same for all rows, so that

    sum_j x_j w_oj = R_o sum_j (c_j x_j) (q_oj - 7.5) + sum_g C_og sum_{j in g} x_j,

where C_og = offset + 7.5 step is the middle of the grid of the columns g of one number of levels, 0
for grids around zero. Only the inputs c_j x_j and the first sum are rounded to bfloat16, as in any
product of that dtype. A code of more than 4 bits is two columns, q = 16 h + l.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.quantization.baq.dequantized_matmul import Layout
from hf_softext.quantization.baq.grid import ends, step_and_offset
from hf_softext.quantization.baq.packing import unpack_runs

# of the kernel: multiples of outputs, and how many columns may share s and z
_OUTPUTS, _GROUPS = 16, (256, 128, 64, 32)


class Packed(NamedTuple):
    """A weight as the kernel wants it; K columns of 4 bits, padded.

    Attributes:
        weight: (N, K / 2) uint8, in the kernel's own order; N is O padded.
        constants: (K / group, N, 2) bfloat16, s and z.
        source: (K,) int64, the column of x that a column belongs to.
        scales: (K,) float32, what that is multiplied by; 0 for padding.
        spans: (O,) float32, R.
        members: (I, G) float32, 1 where a column belongs to a run; None where C is 0.
        middles: (G, O) float32, C; None where it is 0.
    """

    weight: Tensor
    constants: Tensor
    source: Tensor
    scales: Tensor
    spans: Tensor
    members: Tensor | None
    middles: Tensor | None


def available() -> bool:
    """Whether torch has a fast kernel for this processor; elsewhere it is slower than decoding."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def repack(planes: Tensor, ranges: Tensor, order: Tensor, layout: Layout, columns: int) -> Packed:
    """Bit planes as the kernel wants them.

    Args:
        planes: (P, ceil(O / 8)) uint8.
        ranges: (O, 1) or (O, 2) range of each row's grid.
        order: columns that are not zero, sorted as the planes are.
        layout: what the planes are; of one run at least.
        columns: I.
    """
    rows, counts = len(ranges), [run.columns for run in layout.runs]
    nibbles, sources, scales, middles = [], [], [], []
    for (run, codes), factor, own in zip(
        unpack_runs(planes, layout.runs), layout.factors, order.split(counts), strict=True
    ):
        # codes are moved to the middle of what one or two nibbles can hold
        most = 16 if run.width <= 4 else 256
        shift = (most - run.levels) // 2
        codes = codes[:, :rows] + shift
        parts = [(codes, 1)] if most == 16 else [(codes >> 4, 16), (codes & 15, 1)]
        for part, weight in parts:
            nibbles.append(part)
            sources.append(own)
            scales.append(torch.full((run.columns,), weight * factor / (run.levels - 1)))
        step, offset = step_and_offset(ranges, factor, run.levels, layout.zero_point)
        middles.append(offset + ((most - 1) / 2 - shift) * step)
    count = sum(map(len, sources))
    group = min(_GROUPS, key=lambda size: -(-count // size) * (size / 2 + 4))
    padding = -count % group
    # the kernel's own packing takes int32
    wide = torch.zeros(rows + -rows % _OUTPUTS, count + padding, dtype=torch.int32)
    wide[:rows, :count] = torch.cat(nibbles).T
    members = None
    if layout.zero_point or any(run.levels % 2 for run in layout.runs):
        members = torch.zeros(columns, len(counts))
        members[order, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))] = 1
    low, high = ends(ranges.float())
    constants = torch.tensor([1, 0.5], dtype=torch.bfloat16)
    return Packed(
        weight=torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1),
        constants=constants.expand(wide.shape[1] // group, len(wide), 2).contiguous(),
        source=F.pad(torch.cat(sources), (0, padding)),
        scales=F.pad(torch.cat(scales), (0, padding)),
        spans=high - low,
        members=members,
        middles=None if members is None else torch.stack(middles),
    )


def packed_matmul(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """The product for x (N, I), plus the bias; (N, O) in the dtype of x. Not differentiable."""
    wide = x.float()
    inputs = (wide.index_select(1, packed.source) * packed.scales).bfloat16()
    group = 2 * packed.weight.shape[1] // len(packed.constants)
    sums = torch.ops.aten._weight_int4pack_mm_for_cpu(
        inputs, packed.weight, group, packed.constants
    )
    y = sums[:, : len(packed.spans)] * packed.spans
    if packed.members is not None and packed.middles is not None:
        y += (wide @ packed.members) @ packed.middles
    return (y if bias is None else y + bias).to(x.dtype)
