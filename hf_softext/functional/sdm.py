"""The similarity-distance-magnitude activation: a softmax that trusts a row as far as its
neighbours do."""

import math

import torch
from torch import Tensor

# makes the base at least 2, so that its logarithm never vanishes
BASE_OFFSET = 2.0


def sdm(logits: Tensor, similarity: Tensor, distance: Tensor) -> Tensor:
    r"""Probabilities whose base grows with the similarity and whose exponent with the closeness.

    $$\mathrm{SDM}(z)_i = \frac{(2+q)^{d z_i}}{\sum_c (2+q)^{d z_c}}$$

    Args:
        logits: (..., C), floating point; half precision is computed in float32.
        similarity: (...), q >= 0: how many of the nearest rows in a run agree.
        distance: (...), d in [0, 1]: 1 is as near as any row, 0 is farther than all.

    Returns:
        (..., C), float32, float64 for float64 logits. q = e - 2 and d = 1 is softmax; d = 0 is
        uniform.

    Notes:
        The logits must not be -inf where d is 0. No gradient goes to similarity and distance, which
        the paper takes as constants.

    Reference:
        A. Schmaltz, "Similarity-Distance-Magnitude Activations", 2025, arXiv 2509.12760.
    """
    return torch.softmax(_exponents(logits, similarity, distance), -1)


def log_sdm(logits: Tensor, similarity: Tensor, distance: Tensor) -> Tensor:
    r"""$\log_{2+q} \mathrm{SDM}(z)$, to the base of each row; arguments as `sdm`."""
    scaled = _exponents(logits, similarity, distance)
    return torch.log_softmax(scaled, -1) / _log_base(similarity, scaled.dtype)


def sdm_loss(logits: Tensor, labels: Tensor, similarity: Tensor, distance: Tensor) -> Tensor:
    r"""$-\log_{2+q} \mathrm{SDM}(z)_y$ of every row.

    Its gradient is $d\,(\mathrm{SDM}(z) - \mathrm{onehot}(y))$: the logarithm of the base cancels,
    and rows with d = 0 teach nothing.

    Args:
        logits: (..., C), floating point.
        labels: (...), int64, from 0 to C - 1.
        similarity: (...), as `sdm` takes it.
        distance: (...), as `sdm` takes it.

    Returns:
        (...), float32, float64 for float64 logits. Not averaged.

    Reference:
        As `sdm`.
    """
    return -log_sdm(logits, similarity, distance).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def rescaled_similarity(similarity: Tensor, probability: Tensor) -> Tensor:
    r"""$q' = \min(q, (2+q)^p)$: the similarity as far as the output supports it.

    Args:
        similarity: (...), q >= 0.
        probability: (...), p, the output of the predicted class.

    Returns:
        (...). 0 where q is 0, at least 1 elsewhere.

    Reference:
        As `sdm`.
    """
    return torch.minimum(similarity, (BASE_OFFSET + similarity).pow(probability))


def softmax_similarity() -> float:
    """The q with which, at d = 1, `sdm` is softmax: e - 2."""
    return math.e - BASE_OFFSET


def _log_base(similarity: Tensor, dtype: torch.dtype) -> Tensor:
    return (BASE_OFFSET + similarity.detach().to(dtype)).log().unsqueeze(-1)


def _exponents(logits: Tensor, similarity: Tensor, distance: Tensor) -> Tensor:
    """Logits to the base e."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return distance.detach().to(wide.dtype).unsqueeze(-1) * _log_base(similarity, wide.dtype) * wide
