"""How sure the distance quantile is, given how many calibration rows are behind it."""

import math

import torch
from torch import Tensor

from hf_softext.functional.empirical_cdf import ClassLists, count_below


def effective_sample_size(lists: ClassLists, similarity: Tensor) -> Tensor:
    r"""$\hat n_c = \min(\#\{q'_i < q',\ y_i = c\},\ n_c - 1)$ over all calibration rows.

    Args:
        lists: rescaled similarities of the calibration rows of every true class.
        similarity: (B,), q'.

    Returns:
        (B, C), float32, at least 0.

    Notes:
        The paper writes the class size times the distribution function; strict comparison and the
        cap are the authors' code.
    """
    most = (lists.sizes - 1).clamp(min=0)
    return torch.minimum(count_below(lists, similarity), most).float()


def sample_size_error(sample_size: Tensor, alpha: float) -> Tensor:
    r"""$\epsilon_c = \sqrt{\ln(2/(1-\alpha)) / (2\hat n_c)}$, of Dvoretzky, Kiefer and Wolfowitz.

    Args:
        sample_size: any shape.
        alpha: the probability that the band holds the distribution function.

    Returns:
        Same shape, float32; 1 where there are no rows, and everywhere for alpha = 1.
    """
    if alpha >= 1:
        return torch.ones_like(sample_size)
    error = (math.log(2 / (1 - alpha)) / (2 * sample_size.double())).sqrt().float()
    return torch.where(sample_size > 0, error, 1.0)
