"""Codes as bit planes, and back.

The columns of a weight are sorted by their number of levels, ascending and stable, so that those of
one width lie together. A column of b bits takes b consecutive rows of the planes: row p holds bit p
of every code, that of output o in bit o % 8 of byte o // 8. Nothing is padded but the outputs, to a
multiple of eight; where the columns were follows from the levels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.quantization.baq.grid import WIDTHS, width

# (8, 256): byte -> its eight bits as eight bytes of one number, shifted to each plane's place
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8)
_SPREAD = _BITS.view(torch.int64).flatten() << torch.arange(8)[:, None]


def plane_bits(rows: int) -> int:
    """What a plane of a weight with so many outputs takes, in bits."""
    return -(-rows // 8) * 8


def overhead_bits(rows: int, columns: int, zero_point: bool = False) -> int:
    """What a weight takes beside its planes, in bits.

    A byte for each column, a float16 for each row, two where the grid passes through zero, and nine
    float16.
    """
    return 8 * columns + (32 if zero_point else 16) * rows + 16 * WIDTHS


class Run(NamedTuple):
    """Columns that follow one another in the planes and have the same number of levels."""

    levels: int
    columns: int

    @property
    def width(self) -> int:
        """Bits of a code, and planes of a column."""
        return width(self.levels)


def runs_of(levels: Tensor) -> tuple[Run, ...]:
    """The runs in the order of the planes, those of one level first.

    Args:
        levels: (I,) number of levels of each column.
    """
    counts = torch.bincount(levels.long().cpu()).tolist()
    return tuple(Run(level, count) for level, count in enumerate(counts) if count)


def pack(codes: Tensor, levels: Tensor) -> Tensor:
    """Codes as bit planes.

    Args:
        codes: (O, I) uint8.
        levels: (I,) number of levels of each column, 1 to 256.

    Returns:
        (P, ceil(O / 8)) uint8, with P the sum of the columns' widths.

    Raises:
        ValueError: a code that its column's levels do not have.
    """
    if bool((codes.int() >= levels.int()).any()):
        raise ValueError(
            "codes: there is one that is not below the number of levels of its column."
        )
    rows = codes.T[levels.argsort(stable=True)]
    rows = F.pad(rows, (0, -len(codes) % 8))
    place = torch.arange(8, dtype=torch.uint8, device=codes.device)
    planes, start = [rows.new_empty(0, rows.shape[1] // 8)], 0
    for run in runs_of(levels):
        mine = rows[start : start + run.columns, None]
        bits = (mine >> place[: run.width, None]) & 1
        bytes_ = (bits.unflatten(-1, (-1, 8)) << place).sum(-1, dtype=torch.uint8)
        planes.append(bytes_.flatten(0, 1))
        start += run.columns
    return torch.cat(planes)


def spread(planes: Tensor) -> Tensor:
    """The codes of columns of one width.

    Args:
        planes: (N, b, B) uint8, the b planes of N columns.

    Returns:
        (N, 8 B) uint8.
    """
    columns, bits, size = planes.shape
    if planes.device.type != "cpu" or torch.compiler.is_compiling():
        place = torch.arange(8, dtype=torch.uint8, device=planes.device)
        each = ((planes[..., None] >> place) & 1) << place[:bits, None, None]
        return each.sum(1, dtype=torch.uint8).flatten(1)
    # several times as fast where every operation runs by itself
    codes = torch.zeros(columns * size, dtype=torch.int64)
    for bit in range(bits):
        codes += _SPREAD[bit].index_select(0, planes[:, bit].reshape(-1).int())
    return codes.view(columns, size).view(torch.uint8)


def unpack_runs(planes: Tensor, runs: Sequence[Run]) -> Iterator[tuple[Run, Tensor]]:
    """The codes of each run, (columns, 8 B) uint8, from planes (P, B)."""
    start = 0
    for run in runs:
        end = start + run.columns * run.width
        yield run, spread(planes[start:end].unflatten(0, (run.columns, run.width)))
        start = end


def unpack(planes: Tensor, levels: Tensor, out_features: int) -> Tensor:
    """The codes that bit planes hold.

    Args:
        planes: (P, ceil(O / 8)) uint8.
        levels: (I,) number of levels of each column, 1 to 256.
        out_features: O.

    Returns:
        (I, O) uint8: a row for each column, in the order of `levels.argsort(stable=True)`.
    """
    codes = [codes[:, :out_features] for _, codes in unpack_runs(planes, runs_of(levels))]
    return torch.cat(codes)
