"""What passes between the parts of the quantization: plain data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_softext.quantization.baq.grid import step_and_offset, width


@dataclass(frozen=True)
class Settings:
    """How weights are quantized; the fields of `BaqConfig` of the same names.

    Attributes:
        bits: average true bits of a weight.
        bit_range: fewest and most bits of a column.
        allocation: "model", "layer", "uniform" or "paper".
        solver: "gptq" or "rtn".
        act_order: whether columns with larger activations are quantized first.
        clip: whether ranges are searched; else they hold every weight.
        refine: how often the widths within a layer are chosen anew from measured losses.
        damp: what is added to the diagonal of the Gram matrix, as a share of its mean.
        block_size: columns between two updates of all that follow.
    """

    bits: float = 3.0
    bit_range: tuple[int, int] = (1, 8)
    allocation: str = "model"
    solver: str = "gptq"
    act_order: bool = True
    clip: bool = True
    refine: int = 2
    damp: float = 0.01
    block_size: int = 128


@dataclass(frozen=True)
class Sensitivity:
    """What the columns of one weight would lose at every width.

    Attributes:
        rows: O.
        losses: (I, 9) float64, loss at 0 to 8 bits relative to the energy of the layer's output;
            falls with the width, and ever less.
    """

    rows: int
    losses: Tensor


@dataclass(frozen=True)
class Outcome:
    """What quantizing one weight did to its layer's output.

    Attributes:
        loss: trace(E H E^T) / trace(W H W^T), with E the error of the weight W and H the damped
            Gram matrix of its inputs.
        uniform_loss: the same with all columns at one width, the nearest to the average.
        damp: the damping that made H invertible.
    """

    loss: float
    uniform_loss: float
    damp: float


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight as codes.

    Attributes:
        codes: (O, I) uint8.
        levels: (I,) int16, how many levels a column has, 1 to 256; a column of one level is zero.
        ranges: float16, (O, 1) upper end of the grid of each row, or (O, 2) both ends where it
            passes through zero.
        clip: (9,) float16, the factor on the ranges for columns of 0 to 8 bits.
        zero_point: whether the grid passes through zero.
    """

    codes: Tensor
    levels: Tensor
    ranges: Tensor
    clip: Tensor
    zero_point: bool

    def dequantize(self) -> Tensor:
        """The weight that the codes stand for, (O, I) float32."""
        weight = torch.zeros(self.codes.shape, device=self.codes.device)
        for levels in self.levels.unique().tolist():
            if levels > 1:
                columns = self.levels == levels
                factor = float(self.clip[width(levels)])
                step, offset = step_and_offset(self.ranges, factor, levels, self.zero_point)
                weight[:, columns] = offset[:, None] + step[:, None] * self.codes[:, columns]
        return weight
