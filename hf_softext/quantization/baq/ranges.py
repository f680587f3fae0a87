"""Where the grid of a row begins and ends, and how much of it each width uses.

A range that holds every weight wastes levels on the rare large ones, the more the fewer levels
there are. So each row's range is searched as a share of what would hold all its weights, and each
width gets a factor on it that all rows share.
"""

import torch
from torch import Tensor

from hf_softext.quantization.baq.grid import WIDTHS, step_and_offset, to_codes, width

# half the range that loses least on a standard normal row, at 0 to 8 bits: J. Max, Quantizing for
# minimum distortion, IRE Transactions on Information Theory 6, 1960; and what is then lost
NORMAL_RANGE = (1.0, 0.7979, 1.4935, 2.0511, 2.5140, 2.9162, 3.2780, 3.6111, 3.9222)
NORMAL_LOSS = (
    *(1.0, 0.36338, 0.118846, 0.0374397, 0.0115429),
    *(0.00349521, 0.00104005, 0.000304333, 0.0000876862),
)
# beside outlier channels of many bits, a row's range is a small share of its largest weight
_SHARES = tuple(0.9**power for power in range(40))
# the smallest float16: a range of 0 would have no steps
_SMALLEST = 2.0**-24
_FACTORS = tuple(0.5 * 1.15**power for power in range(26))


def full_ranges(weight: Tensor) -> Tensor:
    """The smallest range that holds all weights of a row; next to nothing for a row of zeros.

    Args:
        weight: (O, I) float32.

    Returns:
        (O, 1) float32; rounded to float16 it is not 0.
    """
    return weight.abs().amax(1, keepdim=True).clamp(min=_SMALLEST)


def authors_ranges(weight: Tensor) -> Tensor:
    """Both ends of the smallest range with zero in it that holds a row; (-1, 1) for zeros.

    Args:
        weight: (O, I) float32.

    Returns:
        (O, 2) float32.
    """
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    empty = (high - low).half() == 0
    return torch.stack([torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)], 1)


def search_ranges(
    weight: Tensor, levels: Tensor, sensitivity: Tensor, rounds: int = 2
) -> tuple[Tensor, Tensor]:
    """Ranges and factors that lose least when each weight is rounded by itself.

    Args:
        weight: (O, I) float32.
        levels: (I,) number of levels of each column.
        sensitivity: (I,) what the squared error of a column costs.
        rounds: how often rows and factors are searched in turn.

    Returns:
        Ranges (O, 1) and clip (9,), both float16.
    """
    full = full_ranges(weight)
    groups = [
        (count, weight[:, levels == count], sensitivity[levels == count])
        for count in levels.unique().tolist()
        if count > 1
    ]
    clip = torch.ones(WIDTHS, dtype=torch.float16, device=weight.device)
    if not groups:
        return full.half(), clip
    # the width that costs most sets the scale of the others
    heaviest = max(groups, key=lambda group: float(group[2].sum()) / group[0] ** 2)
    scale = NORMAL_RANGE[width(heaviest[0])]
    clip = torch.tensor(NORMAL_RANGE, device=weight.device).div(scale).half()
    ranges = full.half()
    # rows know no factor but 1 where there is one width
    for _ in range(rounds if len(groups) > 1 else 1):
        best = torch.full((len(weight),), torch.inf, device=weight.device)
        for share in _SHARES:
            candidate = (full * share).clamp(min=_SMALLEST).half()
            loss = sum(
                (_error(columns, candidate, float(clip[width(count)]), count) * cost).sum(1)
                for count, columns, cost in groups
            )
            better = loss < best
            best = torch.where(better, loss, best)
            ranges = torch.where(better[:, None], candidate, ranges)
        for count, columns, cost in groups:
            if count == heaviest[0]:
                continue
            start = NORMAL_RANGE[width(count)] / scale
            candidates = torch.tensor([start * factor for factor in _FACTORS]).half()
            losses = [
                float((_error(columns, ranges, float(f), count) * cost).sum()) for f in candidates
            ]
            clip[width(count)] = candidates[min(range(len(losses)), key=losses.__getitem__)]
    return ranges, clip


def _error(columns: Tensor, ranges: Tensor, factor: float, levels: int) -> Tensor:
    """Squared error of rounding every weight to its nearest level."""
    step, offset = step_and_offset(ranges, factor, levels, zero_point=False)
    codes = to_codes(columns, step, offset, levels)
    return (codes.mul_(step[:, None]).add_(offset[:, None]) - columns).square_()
