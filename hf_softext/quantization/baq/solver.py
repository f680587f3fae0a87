"""From a weight and the Gram matrix of its inputs to codes."""

from dataclasses import replace

import torch
from torch import Tensor

from hf_softext.quantization.baq.allocation import greedy
from hf_softext.quantization.baq.descent import descend, refit
from hf_softext.quantization.baq.gptq import factorize, gptq
from hf_softext.quantization.baq.grid import WIDTHS, nearest, width
from hf_softext.quantization.baq.ranges import (
    NORMAL_LOSS,
    authors_ranges,
    full_ranges,
    search_ranges,
)
from hf_softext.quantization.baq.weight import Outcome, QuantizedWeight, Sensitivity, Settings

# rounds of new ranges: with GPTQ from the start, and then with sweeps over its codes
_ROUNDS, _SWEEPS = 7, 2
# the largest float16
_LARGEST = 65504.0
# a round that gains less than this share is the last of its kind
_WORTH = 0.005
# widths whose losses are measured; beyond them they fall as those of a normal column
_MEASURED = (1, 2, 3, 4)


def measure(weight: Tensor, gram: Tensor | None, settings: Settings) -> Sensitivity:
    """What each column loses at every width, by quantizing the whole weight uniformly at each.

    Args:
        weight: (O, I) float32.
        gram: (I, I) float32 Gram matrix of the inputs; None counts all inputs alike.
        settings: how.

    Returns:
        Losses relative to the output's energy, 0 for columns whose input is always zero. For
        `allocation="paper"` they are as they come, and from one width only.
    """
    work = _Work(weight, gram, settings)
    losses = torch.zeros(weight.shape[1], WIDTHS, dtype=torch.float64)
    if settings.allocation == "paper":
        bits = min(max(round(settings.bits), 1), WIDTHS - 1)
        clip = torch.ones(WIDTHS)
        # the authors' ranges are not rounded
        _, measured = work.round(
            torch.full_like(work.order, 2**bits), authors_ranges(work.weight), clip
        )
        losses[work.order] = measured[:, None].expand(-1, WIDTHS)
        return Sensitivity(len(weight), losses)
    costs = work.weight.square().sum(0) * work.sensitivity / 2
    losses[work.order, 0] = costs.double()
    for bits in _MEASURED:
        _, measured = work.quantize(torch.full_like(work.order, 2**bits))
        losses[work.order, bits] = measured
    last = _MEASURED[-1]
    for bits in range(last + 1, WIDTHS):
        losses[:, bits] = losses[:, last] * NORMAL_LOSS[bits] / NORMAL_LOSS[last]
    losses[work.order[work.dead]] = 0
    return Sensitivity(len(weight), losses * (2 / work.energy))


def solve(
    weight: Tensor, gram: Tensor | None, levels: Tensor, settings: Settings
) -> tuple[QuantizedWeight, Outcome]:
    """Quantize a weight whose columns have been given their levels.

    Columns may then exchange widths among themselves, `settings.refine` times, where measured
    losses call for it; how many bits they have together stays.

    Args:
        weight: (O, I) float32.
        gram: (I, I) float32 Gram matrix of the inputs; None counts all inputs alike.
        levels: (I,) number of levels of each column.
        settings: how.

    Returns:
        The codes, and what they lose.
    """
    work = _Work(weight, gram, settings)
    levels = levels[work.order].long()
    tries = [work.quantize(levels)]
    for _ in range(settings.refine if settings.allocation in ("model", "layer") else 0):
        levels = exchange(tries[-1][0].levels, tries[-1][1], settings.bit_range)
        if bool((levels == tries[-1][0].levels).all()):
            break
        tries.append(work.quantize(levels))
    best = work.polish(min(tries, key=_total))
    average = sum(map(width, best[0].levels.tolist())) / weight.shape[1]
    bits = min(max(round(average), 1), WIDTHS - 1)
    uniform = work.polish(work.quantize(torch.where(work.dead, 1, 2**bits)))
    outcome = Outcome(
        loss=2 * _total(best) / work.energy,
        uniform_loss=2 * _total(uniform) / work.energy,
        damp=work.damp,
    )
    return work.restored(best[0]), outcome


def exchange(levels: Tensor, losses: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Widths of the same sum that suit losses measured at the present ones.

    A column is taken to lose at other widths what a normal column would, times a constant of its
    own.

    Args:
        levels: (I,) levels, powers of two.
        losses: (I,) losses measured with them.
        bounds: fewest and most bits.

    Returns:
        (I,) int64 levels.
    """
    widths = torch.tensor([width(count) for count in levels.tolist()])
    law = torch.tensor(NORMAL_LOSS, dtype=torch.float64)
    table = (losses.cpu() / law[widths])[:, None] * law
    costs = torch.ones(len(widths), dtype=torch.int64)
    return (1 << greedy(table, costs, int(widths.sum()), bounds)).to(levels.device)


# codes, and the losses of the columns
Found = tuple[QuantizedWeight, Tensor]


def _total(found: Found) -> float:
    return float(found[1].sum())


class _Work:
    """A weight in the order in which its columns are rounded, and how to round it."""

    def __init__(self, weight: Tensor, gram: Tensor | None, settings: Settings):
        self.settings = settings
        self.paper = settings.allocation == "paper"
        columns = torch.arange(weight.shape[1], device=weight.device)
        largest = float(weight.abs().amax())
        if largest > _LARGEST:
            raise ValueError(
                f"weights of up to {largest:g} cannot be quantized: the range of a row is stored "
                f"as float16, which ends at {_LARGEST:g}. Name the module in "
                "modules_to_not_convert."
            )
        # inputs that are all zero say nothing of what they will be
        if gram is None or settings.solver == "rtn" or not gram.any():
            self.factor = None
            self.order, self.dead, self.damp = columns, columns < 0, 0.0
            self.sensitivity = torch.ones(len(columns), device=weight.device)
        else:
            self.factor = factorize(gram, settings.damp, settings.act_order)
            self.order, self.damp = self.factor.order, self.factor.damp
            self.dead = self.factor.dead[self.order]
            self.sensitivity = self.factor.sensitivity
        self.weight = weight[:, self.order].clone()
        self.weight[:, self.dead] = 0
        # weights that are all zero lose nothing
        self.energy = float(self._products(self.weight).sum()) or 1.0

    def _products(self, error: Tensor) -> Tensor:
        """(I,) the share of each column in trace(E H E^T)."""
        return (error * (error if self.factor is None else error @ self.factor.gram)).sum(0)

    def quantize(self, levels: Tensor) -> Found:
        """Codes in this order, with ranges that suit the levels, and the losses of the columns."""
        if not self.settings.clip or self.paper:
            clip = torch.ones(WIDTHS, dtype=torch.float16, device=levels.device)
            find = authors_ranges if self.paper else full_ranges
            return self.round(levels, find(self.weight).half(), clip)
        ranges, clip = search_ranges(self.weight, levels, self.sensitivity)
        found = self.round(levels, ranges, clip)
        return found if self.factor is None else self._again(found, self.factor.gram)

    def polish(self, found: Found) -> Found:
        """The same with as little loss as can be had; where only the order of losses matters, what
        `quantize` gives will do."""
        if not self.settings.clip or self.paper or self.factor is None:
            return found
        gram, block = self.factor.gram, self.settings.block_size
        for _ in range(_ROUNDS):
            last, found = found, self._again(found, gram)
            if _total(found) > (1 - _WORTH) * _total(last):
                break
        for _ in range(_SWEEPS):
            fitted = replace(found[0], ranges=refit(self.weight, gram, found[0]))
            swept = replace(fitted, codes=descend(self.weight, gram, fitted, block))
            found = min(found, (swept, self._losses(swept)), key=_total)
        return found

    def _again(self, found: Found, gram: Tensor) -> Found:
        """The better of this and all columns rounded anew on ranges fitted to its codes."""
        one = found[0]
        ranges = refit(self.weight, gram, one)
        return min(found, self.round(one.levels, ranges, one.clip), key=_total)

    def _losses(self, found: QuantizedWeight) -> Tensor:
        """The share of each column in trace(E H E^T) / 2."""
        return self._products(self.weight - found.dequantize()).double() / 2

    def round(self, levels: Tensor, ranges: Tensor, clip: Tensor) -> Found:
        """The same with given ranges."""
        if self.factor is None:
            codes = nearest(self.weight, levels, ranges, clip, self.paper)
            found = QuantizedWeight(codes, levels, ranges, clip, self.paper)
            return found, self._losses(found)
        block, upper = self.settings.block_size, self.factor.upper
        codes, losses = gptq(self.weight, upper, levels, ranges, clip, self.paper, block)
        return QuantizedWeight(codes, levels, ranges, clip, self.paper), losses

    def restored(self, found: QuantizedWeight) -> QuantizedWeight:
        """The same with the columns where they were."""
        back = self.order.argsort()
        levels = found.levels[back].to(torch.int16)
        return replace(found, codes=found.codes[:, back].contiguous(), levels=levels)
