"""Rows of length 1."""

import torch
from torch import Tensor


def unit_rows(x: Tensor, eps: float = 1e-12) -> Tensor:
    r"""$x / \lVert x\rVert$, of the last dimension.

    Args:
        x: (..., D), float32 or float64.
        eps: a row at most so long is left as it is.

    Returns:
        Same shape and dtype; a row of zeros stays one.

    Notes:
        `torch.nn.functional.normalize` divides a row of zeros by its eps of 1e-12, and so
        multiplies the gradient by 1e12. Here the gradient of such a row is passed on as it is.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # not "length > eps", which would make NaN a 1
    return x / torch.where(length <= eps, torch.ones_like(length), length)
