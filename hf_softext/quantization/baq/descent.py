"""Codes made better one column at a time, and ranges made better for given codes.

GPTQ never looks back: a column is rounded before the later ones are known, and ranges are chosen
before all codes are. Both steps here can only lower trace(E H E^T), so they may be repeated.
"""

import torch
from torch import Tensor

from hf_softext.quantization.baq.grid import factors_of, step_and_offset, width
from hf_softext.quantization.baq.weight import QuantizedWeight


def descend(weight: Tensor, gram: Tensor, found: QuantizedWeight, block_size: int) -> Tensor:
    """Codes after one sweep in which each column takes its best level, given all the others.

    With E = W' - W and R = E H, the best real value of column j is w'_j - R_j / H_jj, and the level
    nearest to it is the best level.

    Args:
        weight: (O, I) float32.
        gram: (I, I) Gram matrix of the inputs, its diagonal positive.
        found: codes to start from.
        block_size: columns after which all that follow are updated at once.

    Returns:
        (O, I) uint8 codes.
    """
    # transposed, so that a column lies in one piece
    values = found.dequantize().T.contiguous()
    codes = found.codes.T.contiguous()
    slope = gram @ (values - weight.T)
    diagonal, counts = gram.diagonal().tolist(), found.levels.tolist()
    grids = {
        count: step_and_offset(
            found.ranges, float(found.clip[width(count)]), count, found.zero_point
        )
        for count in set(counts)
        if count > 1
    }
    for start in range(0, len(values), block_size):
        end = min(start + block_size, len(values))
        changes = torch.zeros(end - start, values.shape[1], device=weight.device)
        for column in range(start, end):
            if counts[column] == 1:
                continue
            step, offset = grids[counts[column]]
            wanted = values[column] - slope[column] / diagonal[column]
            code = ((wanted - offset) / step).round_().clamp_(0, counts[column] - 1)
            codes[column] = code
            change = torch.addcmul(offset, step, code) - values[column]
            changes[column - start] = change
            slope[column + 1 : end].addr_(gram[column, column + 1 : end], change)
        slope[end:].addmm_(gram[end:, start:end], changes)
    return codes.T.contiguous()


def refit(weight: Tensor, gram: Tensor, found: QuantizedWeight) -> Tensor:
    """The ranges with which given codes come closest to the layer's output.

    A row's values are its range times numbers that follow from the codes, w' = r b, so that
    trace(E H E^T) is least at r = b H w / b H b.

    Args:
        weight: (O, I) float32.
        gram: (I, I) Gram matrix of the inputs.
        found: codes, on a grid that does not pass through zero.

    Returns:
        (O, 1) float16 ranges; a row for which this is not above zero keeps what it has.
    """
    factors = factors_of(found.levels, found.clip)
    shares = factors * (2 * found.codes / (found.levels - 1).clamp(min=1) - 1)
    projected = shares @ gram
    best = (projected * weight).sum(1) / (projected * shares).sum(1)
    fitted = best.half()[:, None]
    return torch.where((fitted > 0) & fitted.isfinite(), fitted, found.ranges)
