"""Gram matrices of activations whose sums are exact.

The Gram matrix x^T x of one sequence is computed in float32 and rounded to whole multiples of a
quantum; the multiples are added as 64-bit integers. So a sum over sequences does not depend on
their order, nor on how they are dealt to processes, to the last bit.

The quantum of an entry is 2^-26 s_i s_j, where s_i^2 is the power of four at or above the energy of
column i in the first sequence, but at least 2^-24 of the largest column's: small columns keep their
own precision beside large ones, and a column that was silent at first has room. 2^36 times the
first sequence's energy can be added; beyond that the lowest bits are dropped, and only then does
the last bit depend on the order.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_softext.quantization.baq.processes import from_all, processes

_PRECISION = 26
_FLOOR = 12
# one bit less than an int64 has without its sign
_LARGEST = 2.0**62
# rows that are computed at a time
_ROWS = 512


class Gram:
    """Sum of x^T x.

    Attributes:
        tokens: how many rows were added; of all processes once they are `reduce`d.
    """

    def __init__(self, columns: int, device: torch.device | str | None = None):
        self.tokens = 0
        self._sum = torch.zeros(columns, columns, dtype=torch.int64, device=device)
        self._scale: Tensor | None = None
        self._waiting: list[Tensor] = []
        self._shift = 0
        # no entry is larger than this many quanta before the shift
        self._bound = 0.0

    def add(self, inputs: Tensor) -> None:
        """Add inputs (..., I) of any floating dtype, all of one sequence.

        Raises:
            ValueError: they are not finite, or so large that their squares are not.
        """
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if not _energy(rows).isfinite().all():
            raise ValueError("the activations hold inf or NaN.")
        self.tokens += len(rows)
        if self._scale is None:
            self._waiting.append(rows)
        else:
            self._accumulate(rows, self._scale)

    @property
    def first_energy(self) -> Tensor | None:
        """(I,) energy of the columns in what was added before the quantum is chosen, if any."""
        if not self._waiting:
            return None
        energy = torch.stack([_energy(rows) for rows in self._waiting]).sum(0)
        return energy.cpu() if bool(energy.any()) else None

    def settle(self, energy: Tensor) -> None:
        """Choose the quantum from the first sequence's energy of the columns, (I,)."""
        mantissa, exponent = torch.frexp(energy.to(self._sum.device))
        # energy is below 2^exponent, and the scaled one at most 1
        half = torch.div(exponent + 1, 2, rounding_mode="floor")
        half = torch.where(mantissa > 0, half, torch.iinfo(half.dtype).min)
        half = half.clamp(min=int(half.max()) - _FLOOR)
        scale = self._scale = torch.ldexp(torch.ones(len(half), device=half.device), -half)
        waiting, self._waiting = self._waiting, []
        for rows in waiting:
            self._accumulate(rows, scale)

    def _accumulate(self, rows: Tensor, scale: Tensor) -> None:
        rows = rows * scale
        self._bound += float(_energy(rows).max()) * 2.0**_PRECISION
        self._coarsen(_needed_shift(self._bound))
        for start in range(0, rows.shape[1], _ROWS):
            # the other half is its mirror image
            part = rows[:, start : start + _ROWS].T @ rows[:, start:]
            part.mul_(2.0 ** (_PRECISION - self._shift)).round_()
            self._sum[start : start + _ROWS, start:] += part.long()

    def _coarsen(self, shift: int) -> None:
        if shift > self._shift:
            self._sum >>= shift - self._shift
            self._shift = shift

    def total(self) -> Tensor | None:
        """(I, I) float32, symmetric; None where nothing was added."""
        if not self.tokens:
            return None
        if self.first_energy is not None:
            self.settle(self.first_energy)
        total = torch.zeros(self._sum.shape, device=self._sum.device)
        if self._scale is None:
            return total
        unscale = 1 / self._scale.double()
        for start in range(0, len(total), _ROWS):
            part = self._sum[start : start + _ROWS, start:].double()
            part *= 2.0 ** (self._shift - _PRECISION) * unscale[start : start + _ROWS, None]
            part = (part * unscale[start:]).float()
            size = len(part)
            part[:, :size] = part[:, :size].triu() + part[:, :size].triu(1).T
            total[start : start + _ROWS, start:] = part
            total[start:, start : start + _ROWS] = part.T
        return total


def _energy(rows: Tensor) -> Tensor:
    return rows.square().sum(0)


def _needed_shift(bound: float) -> int:
    shift = 0
    while bound > _LARGEST * 2.0**shift:
        shift += 1
    return shift


def settle(grams: Mapping[str, Gram]) -> None:
    """Choose the quanta of those that have none yet; every process calls it after each round.

    A round is one sequence for each process, in the order of the processes, so that the first
    sequence with an energy decides however many processes there are.
    """
    open_ones = {name: gram for name, gram in grams.items() if gram._scale is None}
    if not open_ones:
        return
    everywhere = from_all({name: gram.first_energy for name, gram in open_ones.items()})
    for name, gram in open_ones.items():
        found = [one[name] for one in everywhere if one[name] is not None]
        if found:
            gram.settle(found[0])
        else:
            # what was all zeros is added already
            gram._waiting.clear()


def reduce(grams: Mapping[str, Gram]) -> None:
    """Have every process hold the sums over all of them; every process calls it."""
    if processes().num_processes == 1:
        return
    everywhere = from_all({name: (g.tokens, g._shift, g._bound) for name, g in grams.items()})
    for name, gram in grams.items():
        tokens, shifts, bounds = zip(*(one[name] for one in everywhere), strict=True)
        gram.tokens = sum(tokens)
        gram._coarsen(max(*shifts, _needed_shift(sum(bounds))))
        torch.distributed.all_reduce(gram._sum)
