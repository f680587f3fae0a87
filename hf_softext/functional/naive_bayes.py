"""Gaussian classes whose features are independent and have one variance in all classes."""

import math

import torch
from torch import Tensor

from hf_softext.functional.class_moments import ClassMoments


def shared_variance(moments: ClassMoments, epsilon: float = 1e-9) -> Tensor:
    r"""$\sigma_j^2 = \sum_k \pi_k (s_{kj}^2 + \epsilon)$, with $s_{kj}^2 = \frac1{m_k}
    \sum_{y_i=k} (x_{ij} - \mu_{kj})^2$ and $\pi_k = m_k / m$.

    Args:
        moments: of C classes and D features.
        epsilon: as in the authors' code. They add it again with every further batch; here it is
            added once.

    Returns:
        (D,), float64.
    """
    return moments.spread.sum(0) / moments.count.sum() + epsilon


def naive_bayes_log_likelihood(features: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    r"""$\ln p(x \mid k) = -\frac12\sum_j \frac{(x_j - \mu_{kj})^2}{\sigma_j^2} - \frac12\sum_j
    \ln 2\pi\sigma_j^2$.

    Args:
        features: (B, D), floating point.
        means: (C, D).
        variance: (D,), above 0.

    Returns:
        (B, C), in the precision of `means`.
    """
    scale = variance.rsqrt()
    gaps = torch.cdist(
        features.to(means.dtype) * scale,
        means * scale,
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    return -0.5 * (gaps.square() + (2.0 * math.pi * variance).log().sum())


def naive_bayes_linear(means: Tensor, variance: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    r"""The linear layer whose softmax is the posterior.

    $$w_k = \frac{\mu_k - \bar\mu}{\sigma^2}, \qquad b_k = \ln\pi_k - \frac12\sum_j \frac{(\mu_{kj}
    - \bar\mu_j)^2}{\sigma_j^2} - \bar\mu \cdot w_k, \qquad \bar\mu = \sum_k \pi_k \mu_k$$

    Args:
        means: (C, D), float64.
        variance: (D,), above 0.
        prior: (C,), above 0, of sum 1.

    Returns:
        Weight (C, D) and bias (C,).

    Notes:
        The paper's $w_k = \mu_k / \sigma^2$ differs by a vector that all classes share and that
        softmax does not see. Around $\bar\mu$ the weights are as small as they can be, and survive
        float32 where features are far from 0.

    Reference:
        C. Zheng et al., "Revisiting Discriminative vs. Generative Classifiers: Theory and
        Implications", 2023, arXiv 2302.02334.
    """
    middle = prior @ means
    rest = means - middle
    weight = rest / variance
    bias = prior.log() - 0.5 * (rest * weight).sum(1) - weight @ middle
    return weight, bias
