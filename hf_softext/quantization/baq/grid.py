"""The values that a code can stand for.

A row of a weight has a range, and a column a number of levels. Where they meet, the levels lie
evenly over the range:

    w = offset + step * q,    q = 0 .. L - 1,
    step = f (hi - lo) / (L - 1),    offset = f lo,

with f a factor that all columns of one width share. A range is given by one number, hi = -lo: a
second one costs more bits than it is worth. The authors' own grid has both ends, and passes through
zero: there offset = -step round(-f lo / step).
"""

import torch
from torch import Tensor

WIDTHS = 9  # a column takes 0 to 8 bits


def width(levels: int) -> int:
    """How many bits a code with so many levels takes: ceil(log2 levels)."""
    return (levels - 1).bit_length()


def ends(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper end of each row, (O,) each, of ranges (O, 1) or (O, 2)."""
    return (ranges[:, 0], ranges[:, 1]) if ranges.shape[1] == 2 else (-ranges[:, 0], ranges[:, 0])


def step_and_offset(
    ranges: Tensor, factor: float, levels: int, zero_point: bool
) -> tuple[Tensor, Tensor]:
    """The distance of two levels of every row, and the lowest level.

    Args:
        ranges: (O, 1) upper end of each row, or (O, 2) lower and upper end; any floating dtype.
        factor: f, what the ranges are multiplied by.
        levels: L, at least 2.
        zero_point: whether the grid passes through zero.

    Returns:
        step and offset, (O,) float32 each.
    """
    low, high = ends(factor * ranges.float())
    step = (high - low) / (levels - 1)
    return step, (-step * (-low / step).round() if zero_point else low)


def factors_of(levels: Tensor, clip: Tensor) -> Tensor:
    """The factor on the ranges for each column, (I,) float32; 0 for a column of no bits."""
    factors = torch.zeros(len(levels), device=levels.device)
    for count in levels.unique().tolist():
        if count > 1:
            factors[levels == count] = float(clip[width(count)])
    return factors


def to_codes(values: Tensor, step: Tensor, offset: Tensor, levels: int) -> Tensor:
    """The codes of the levels nearest to some values; they are still floating.

    Args:
        values: (O, N) float32.
        step: (O,) distance of two levels.
        offset: (O,) the lowest level.
        levels: L, how many there are.

    Returns:
        (O, N) float32 whole numbers from 0 to L - 1.
    """
    return ((values - offset[:, None]) / step[:, None]).round_().clamp_(0, levels - 1)


def nearest(
    weight: Tensor, levels: Tensor, ranges: Tensor, clip: Tensor, zero_point: bool
) -> Tensor:
    """Every weight rounded by itself.

    Args:
        weight: (O, I) float32.
        levels: (I,) number of levels of each column.
        ranges: (O, 1) or (O, 2) range of each row.
        clip: (9,) factor on the ranges for each width.
        zero_point: whether the grid passes through zero.

    Returns:
        (O, I) uint8 codes.
    """
    codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    for count in levels.unique().tolist():
        if count > 1:
            columns = levels == count
            grid = step_and_offset(ranges, float(clip[width(count)]), count, zero_point)
            codes[:, columns] = to_codes(weight[:, columns], *grid, count).to(torch.uint8)
    return codes
