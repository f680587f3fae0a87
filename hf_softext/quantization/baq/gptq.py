"""GPTQ with a number of levels of its own for every column.

Columns are rounded one after the other; what a column loses is made good by those that follow, as
far as the inputs are correlated. With H the Gram matrix of the inputs and H^-1 = U^T U:

    q_j = nearest level to w_j,    e = (w_j - q_j) / U_jj,    w_k <- w_k - e U_jk for k > j,

and the loss of column j is l_j = sum over rows of e^2 / 2, so that trace(E H E^T) = 2 sum l.

Reference: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers, 2022, arXiv 2210.17323.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_softext.quantization.baq.grid import step_and_offset, width

# of the mean of the diagonal: above it, inputs would hardly count
_MOST_DAMP = 100.0


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of a Gram matrix, in the order in which columns are rounded.

    Attributes:
        order: (I,) which column comes when.
        upper: (I, I) U, upper triangular, of the permuted and damped Gram matrix H.
        gram: (I, I) that matrix.
        dead: (I,) in the original order, columns whose input is always zero.
        damp: the share of the mean of its diagonal that was added to it.
    """

    order: Tensor
    upper: Tensor
    gram: Tensor
    dead: Tensor
    damp: float

    @property
    def sensitivity(self) -> Tensor:
        """(I,) 1 / U_jj^2 in that order: what an error of a column costs after compensation."""
        return self.upper.diagonal() ** -2


def factorize(gram: Tensor, damp: float, act_order: bool) -> Factor:
    """Invert a Gram matrix, with ten times the damping until it can be.

    Args:
        gram: (I, I) float32, symmetric.
        damp: share of the mean of the diagonal that is added to it.
        act_order: whether columns come in falling order of the diagonal; else as they are.

    Raises:
        ValueError: not finite, or not invertible with any damping.
    """
    diagonal = gram.diagonal()
    if not diagonal.isfinite().all():
        raise ValueError("the Gram matrix of the activations is not finite.")
    dead = diagonal <= 0
    order = torch.arange(len(gram), device=gram.device)
    if act_order:
        order = diagonal.argsort(descending=True, stable=True)
    if dead.all():
        gram = torch.eye(len(gram), device=gram.device)
    gram = gram[order][:, order].clone()
    diagonal = gram.diagonal()
    # a column without input of its own does not belong into the mean
    mean = diagonal[diagonal > 0].mean()
    diagonal[diagonal <= 0] = mean
    share = damp
    while share <= _MOST_DAMP:
        damped = gram.clone()
        damped.diagonal().add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and upper.isfinite().all():
                return Factor(order, upper, damped, dead, share)
        share *= 10
    raise ValueError(f"the Gram matrix of the activations stays singular with damp={share / 10:g}.")


def gptq(
    weight: Tensor,
    upper: Tensor,
    levels: Tensor,
    ranges: Tensor,
    clip: Tensor,
    zero_point: bool,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Round the columns from first to last.

    Args:
        weight: (O, I) float32, columns in the order in which they are rounded.
        upper: (I, I) U in that order.
        levels: (I,) number of levels of each column; 1 makes it zero.
        ranges: (O, 1) or (O, 2) range of each row.
        clip: (9,) factor on the ranges for each width.
        zero_point: whether the grid passes through zero.
        block_size: columns after which all that follow are updated at once; the result does not
            depend on it but for rounding.

    Returns:
        Codes (O, I) uint8 and losses (I,) float64.
    """
    # transposed, so that a column lies in one piece
    rest = weight.T.clone(memory_format=torch.contiguous_format)
    codes = torch.zeros(rest.shape, dtype=torch.uint8, device=weight.device)
    losses = torch.zeros(len(rest), device=weight.device)
    grids = {
        count: step_and_offset(ranges, float(clip[width(count)]), count, zero_point)
        for count in levels.unique().tolist()
        if count > 1
    }
    counts, diagonal = levels.tolist(), upper.diagonal().tolist()
    for start in range(0, len(rest), block_size):
        end = min(start + block_size, len(rest))
        errors = torch.empty(end - start, rest.shape[1], device=weight.device)
        for column in range(start, end):
            error = rest[column] / diagonal[column]
            if counts[column] > 1:
                step, offset = grids[counts[column]]
                code = ((rest[column] - offset) / step).round_().clamp_(0, counts[column] - 1)
                codes[column] = code
                error = (rest[column] - torch.addcmul(offset, step, code)) / diagonal[column]
            losses[column] = error.square().sum() / 2
            errors[column - start] = error
            rest[column + 1 : end].addr_(upper[column, column + 1 : end], error, alpha=-1)
        rest[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous(), losses.double()
