"""Gaussian classes that share one covariance, and how far a row is from each."""

from typing import NamedTuple

import torch
from torch import Tensor

# rows that are made float64 at a time
_CHUNK = 16384


class TiedCovariance(NamedTuple):
    r"""The covariance within classes, and how far it should be shrunk.

    Attributes:
        matrix: $\Sigma = \frac1N\sum_i r_i r_i^\top$ with $r_i = x_i - \mu_{y_i}$, (D, D) float64.
        shrinkage: the share in [0, 1] of $\frac{\mathrm{tr}\,\Sigma}{D} I$ that Ledoit and Wolf
            would put in its place.
    """

    matrix: Tensor
    shrinkage: float


def tied_covariance(features: Tensor, labels: Tensor, means: Tensor) -> TiedCovariance:
    r"""The maximum-likelihood covariance around class means.

    Args:
        features: (N, D), floating point of any precision.
        labels: (N,), whole numbers.
        means: (C, D), of the classes.

    Returns:
        See `TiedCovariance`. The shrinkage is $\min(\beta, \delta) / \delta$ with $\delta = \lVert
        \Sigma - \frac{\mathrm{tr}\,\Sigma}{D} I\rVert^2$ and $\beta = \frac1{N^2}\sum_i \lVert r_i
        r_i^\top - \Sigma\rVert^2$, Frobenius norms.

    Reference:
        O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance
        matrices", 2004 (recalled; a test compares it with scikit-learn's).
    """
    size, count = features.shape[1], len(features)
    matrix = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    fourth = torch.zeros((), dtype=torch.float64, device=features.device)
    for at in range(0, count, _CHUNK):
        rest = features[at : at + _CHUNK].double() - means[labels[at : at + _CHUNK]]
        matrix += rest.T @ rest
        fourth += rest.square().sum(1).square().sum()
    matrix /= count
    spread = (matrix - torch.eye(size).to(matrix) * matrix.trace() / size).square().sum()
    noise = (fourth / count - matrix.square().sum()) / count
    # round classes already: nothing moves them
    share = 0.0 if spread == 0 else float((noise.clamp(min=0.0) / spread).clamp(max=1.0))
    return TiedCovariance(matrix, share)


def whitening(covariance: Tensor) -> Tensor:
    r"""W with $W W^\top = \Sigma^+$, the pseudo-inverse.

    Args:
        covariance: (D, D), symmetric positive semidefinite, float64.

    Returns:
        (D, R) with R the rank. Directions in which nothing varies are left out: what differs from a
        class only there has no distance from it.
    """
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1].clamp(min=0.0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor
    return vectors[:, kept] * values[kept].rsqrt()


def tied_gaussian_scores(features: Tensor, means: Tensor, white: Tensor) -> Tensor:
    r"""$-\frac12 (x - \mu_c)^\top \Sigma^+ (x - \mu_c)$, at most 0.

    Args:
        features: (B, D), floating point; computed in the precision of `white`.
        means: (C, D).
        white: (D, R), as `whitening` gives it.

    Returns:
        (B, C), from differences in the whitened space: no matrix of B x B or D x D is built, and a
        class mean scores exactly 0.

    Reference:
        K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting
        Out-of-Distribution Samples and Adversarial Attacks", 2018, arXiv 1807.03888, equation 2
        (recalled). The paper has no factor 1/2, the authors' code has.
    """
    rows, centres = features.to(white.dtype), means.to(white.dtype)
    # the middle of the classes is as good an origin as any, and digits are not spent on it
    middle = centres.mean(0)
    gaps = torch.cdist(
        (rows - middle) @ white,
        (centres - middle) @ white,
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    return -0.5 * gaps.square()


def raise_score(inputs: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    r"""$x + \epsilon\,s$ with s = 1 where the score falls no faster than 0, and -1 elsewhere.

    Args:
        inputs: x, any shape.
        gradient: of the score by x, same shape.
        epsilon: length of the step in each entry, in the unit of x.

    Returns:
        The inputs with a higher score, if the step is small. As in the authors' code the sign of
        $-\partial M/\partial x$ is 1 where it is 0, and the step goes against it.

    Reference:
        K. Lee et al., 2018, arXiv 1807.03888, equation 3 (recalled).
    """
    one = torch.ones((), dtype=inputs.dtype, device=inputs.device)
    return inputs - epsilon * torch.where(-gradient >= 0, one, -one)
