"""How many bits a column gets.

At high rate a column's loss is c 4^(-R). Minimising the sum under a budget gives equal losses for
all (the closed form), and water-filling where R must not be negative. Codes take whole bits, and at
few bits the law fails; what decides here is a table of losses per width, of which the greedy choice
is exact.

Reference: C. Zhang, L. Wang, S. Lasaulce, M. Debbah, BAQ: Efficient Bit Allocation Quantization for
Large Language Models, 2025, arXiv 2506.05664, eq. 4 to 6. The paper gives every layer the same
average; that layers compete, by loss relative to their output, is ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_softext.quantization.baq.grid import WIDTHS, width
from hf_softext.quantization.baq.packing import overhead_bits, plane_bits
from hf_softext.quantization.baq.weight import Sensitivity, Settings


def closed_form(coefficients: Tensor, average: float) -> Tensor:
    """The real-valued rates that make all losses c 4^(-R) equal: R = average + log4(c / mean c).

    Args:
        coefficients: (N,) c, not negative; columns of c = 0 are dead and no part of any mean.
        average: bits of a column that is not dead.

    Returns:
        (N,) float64 rates, negative ones included; 0 for dead columns. The mean is geometric.
    """
    alive = coefficients > 0
    logs = coefficients[alive].double().log2() / 2
    rates = torch.zeros(coefficients.shape, dtype=torch.float64)
    rates[alive] = average + logs - logs.mean()
    return rates


def water_filling(coefficients: Tensor, average: float) -> Tensor:
    """The best real-valued rates that are not negative: R = max(0, log4(c / level)).

    Args:
        coefficients: (N,) c, not negative; columns of c = 0 are dead and no part of any mean.
        average: bits of a column that is not dead, 0 or more.

    Returns:
        (N,) float64 rates; 0 for dead columns.
    """
    rates = torch.zeros(coefficients.shape, dtype=torch.float64)
    alive = (coefficients > 0).nonzero().flatten()
    if len(alive) == 0:
        return rates
    logs, order = (coefficients[alive].double().log2() / 2).sort(descending=True)
    # with the k largest above the water, the level is where their rates sum to the budget
    counts = torch.arange(1, len(logs) + 1, dtype=torch.float64)
    levels = (logs.cumsum(0) - average * len(logs)) / counts
    above = int((logs > levels).sum().clamp(min=1))
    rates[alive[order]] = (logs - levels[above - 1]).clamp(min=0)
    return rates


def greedy(losses: Tensor, costs: Tensor, budget: int, bounds: tuple[int, int]) -> Tensor:
    """Whole bits that minimise the sum of losses: one bit at a time to whom it helps most.

    As a column's gains fall from bit to bit, this is a sorted list of all gains per cost, of which
    the first that fit are taken. For equal costs it is the optimum; else what is lost is less than
    one bit of one column.

    Args:
        losses: (N, 9) loss of each column at 0 to 8 bits. Made convex first: a width that is worse
            than a mixture of its neighbours counts as that mixture. A column that loses nothing at
            0 bits gets none.
        costs: (N,) whole number, what one bit of the column costs.
        budget: what may be spent.
        bounds: fewest and most bits of a column that is not dead.

    Returns:
        (N,) int64 widths.

    Raises:
        ValueError: the fewest bits cost more than the budget.
    """
    low, high = bounds
    alive = losses[:, 0] > 0
    widths = torch.where(alive, low, 0)
    left = budget - int((widths * costs).sum())
    if left < 0:
        raise ValueError(f"{low} bits for every column cost {budget - left}, above {budget}.")
    table = _convex(losses[:, low : high + 1].double())
    gains = (table[:, :-1] - table[:, 1:]) / costs[:, None]
    gains[~alive] = -1
    order = gains.flatten().argsort(descending=True, stable=True)
    order = order[: int((gains >= 0).sum())]
    owners = order // max(gains.shape[1], 1)
    price = costs[owners]
    fits = int((price.cumsum(0) <= left).sum())
    widths += torch.bincount(owners[:fits], minlength=len(widths))
    left -= int(price[:fits].sum())
    # the rest may still pay for a cheaper column's bit, if it is that column's next one
    blocked = torch.zeros(len(widths), dtype=torch.bool)
    for owner, cost in zip(owners[fits:].tolist(), price[fits:].tolist(), strict=True):
        if left < int(costs.min()):
            break
        if cost <= left and not blocked[owner]:
            widths[owner] += 1
            left -= cost
        else:
            blocked[owner] = True
    return widths


def _convex(table: Tensor) -> Tensor:
    """The largest convex, falling function below each row."""
    lower = table.cummin(1).values
    count = table.shape[1]
    hull = lower.clone()
    for left in range(count):
        for right in range(left + 2, count):
            share = torch.arange(1, right - left, dtype=table.dtype) / (right - left)
            chord = lower[:, left, None] * (1 - share) + lower[:, right, None] * share
            inner = hull[:, left + 1 : right]
            torch.minimum(inner, chord, out=inner)
    return hull


def paper_levels(losses: Tensor, bits: float) -> Tensor:
    """The numbers of levels that the authors' code chooses from measured losses.

        L = round(max(1, (l / geometric mean(l) 2^(1.95 R))^(1 / 1.95)))

    The geometric mean is exp(mean log(l + 1e-8)), so that dead columns lower it and all others get
    more levels than R bits; the mean of log2 L may be far above R. Kept as it is, to be compared
    with.

    Args:
        losses: (I,) losses of the columns after a first pass at `bits`.
        bits: R.

    Returns:
        (I,) int16 levels. The authors have no upper bound; here it is 256.
    """
    mean = losses.double().mean()
    ratio = (losses.double() + 1e-8).log().mean().exp() / mean
    power = losses.double() / (ratio * mean) * 2 ** (1.95 * bits)
    return (power ** (1 / 1.95)).clamp(1, 256).round().to(torch.int16)


def nominal_rate(levels: Tensor) -> float:
    """The average that the authors report: the mean of log2 L, which no packed file reaches."""
    return float(levels.double().log2().mean())


def packed_rate(levels: Tensor) -> float:
    """The average of the bits that codes of so many levels take."""
    return sum(map(width, levels.tolist())) / len(levels)


def allocate(sensitivities: Mapping[str, Sensitivity], settings: Settings) -> dict[str, Tensor]:
    """The levels of every column of every weight.

    Args:
        sensitivities: losses per width of each weight, by name.
        settings: `bits` counts all that a weight takes on disk, for "model" (all weights compete)
            and "layer" (each has the same average). For "uniform" and "paper" it is the nominal
            width of a code, as in the literature.

    Returns:
        (I,) int16 levels by name; 1 for a column of no bits.

    Raises:
        ValueError: `bits` cannot be reached.
    """
    if settings.allocation == "paper":
        column = _whole(settings.bits)
        return {
            name: paper_levels(one.losses[:, column], settings.bits)
            for name, one in sensitivities.items()
        }
    if settings.allocation == "uniform":
        bits = _whole(settings.bits)
        dead = {name: one.losses[:, 0] <= 0 for name, one in sensitivities.items()}
        return {name: (1 << torch.where(d, 0, bits)).to(torch.int16) for name, d in dead.items()}
    if settings.allocation == "layer":
        return {
            name: levels
            for name, one in sensitivities.items()
            for levels in _compete({name: one}, settings).values()
        }
    return _compete(sensitivities, settings)


def allocate_alike(shapes: Mapping[str, tuple[int, int]], settings: Settings) -> dict[str, Tensor]:
    """The levels of every column where all columns are alike; it takes the shapes alone.

    Args:
        shapes: (O, I) of each weight, by name.
        settings: as for `allocate`.

    Returns:
        (I,) int16 levels by name.

    Raises:
        ValueError: `bits` cannot be reached. Columns that are always zero take no bits, and so may
            bring fewer into reach: that only the data can tell.
    """
    fall = 0.25 ** torch.arange(WIDTHS, dtype=torch.float64)
    alike = {name: Sensitivity(rows, fall.expand(n, -1)) for name, (rows, n) in shapes.items()}
    return allocate(alike, settings)


def _compete(sensitivities: Mapping[str, Sensitivity], settings: Settings) -> dict[str, Tensor]:
    sizes = [len(one.losses) for one in sensitivities.values()]
    planes = [plane_bits(one.rows) for one in sensitivities.values()]
    costs = torch.tensor(planes).repeat_interleave(torch.tensor(sizes))
    losses = torch.cat([one.losses for one in sensitivities.values()])
    pairs = list(zip(sensitivities.values(), sizes, strict=True))
    weights = sum(one.rows * size for one, size in pairs)
    overhead = sum(overhead_bits(one.rows, size) for one, size in pairs)
    alive = int(costs[losses[:, 0] > 0].sum())
    low = (overhead + settings.bit_range[0] * alive) / weights
    most = settings.bit_range[1] + overhead / weights
    if not low <= settings.bits <= most:
        where = f" of {next(iter(sensitivities))}" if len(sensitivities) == 1 else ""
        raise ValueError(
            f"bits={settings.bits:g} cannot be reached: with bit_range={settings.bit_range} the "
            f"{len(sensitivities)} quantized modules{where} take from {low:.3f} to {most:.3f} bits "
            f"a weight, row ranges and level maps ({overhead / weights:.3f}) included. Choose "
            "another bits or bit_range, or leave small modules out by modules_to_not_convert."
        )
    budget = int(settings.bits * weights) - overhead
    widths = greedy(losses, costs, budget, settings.bit_range)
    levels = (1 << widths).to(torch.int16)
    return dict(zip(sensitivities, levels.split(sizes), strict=True))


def _whole(bits: float) -> int:
    """The nearest width that a table of losses has."""
    return min(max(round(bits), 1), WIDTHS - 1)
