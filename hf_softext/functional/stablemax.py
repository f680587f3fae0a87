"""StableMax: a softmax whose positive map grows linearly, so that it cannot saturate in floating
point."""

import torch
from torch import Tensor


def stablemax_logits(scores: Tensor) -> Tensor:
    r"""$g(z) = \mathrm{sign}(z)\log(1+|z|)$, so that StableMax(z) = softmax(g(z)).

    The paper's map is $s(z) = z+1$ for $z \ge 0$ and $1/(1-z)$ for $z < 0$; $g = \log s$ for every
    $z$.

    Args:
        scores: any shape, floating point.

    Returns:
        Same shape and dtype. The derivative is $1/(1+|z|)$, also at 0.

    Notes:
        The ratio form of the authors' code has a NaN gradient at z = 1 in float32; this one has
        none.
    """
    # |z| written with where: autograd's abs has gradient 0 at 0, the derivative there is 1
    positive = scores >= 0
    magnitude = torch.log1p(torch.where(positive, scores, -scores))
    return torch.where(positive, magnitude, -magnitude)


def stablemax(scores: Tensor, dim: int = -1) -> Tensor:
    r"""Probabilities $s(z_i) / \sum_j s(z_j)$.

    Args:
        scores: (..., C), floating point; half precision is computed in float32.
        dim: the dimension that sums to 1.

    Returns:
        Same shape and dtype. Monotone in the scores, but not invariant to adding a constant to
        them.

    Reference:
        L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
        Stability", 2025, arXiv 2501.04697.
    """
    return log_stablemax(_wide(scores), dim).exp().to(scores.dtype)


def log_stablemax(scores: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of `stablemax`, with the same arguments."""
    return torch.log_softmax(stablemax_logits(_wide(scores)), dim=dim).to(scores.dtype)


def _wide(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
