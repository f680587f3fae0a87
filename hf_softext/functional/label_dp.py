"""Means of bags released under differential privacy of the labels, and how large bags should be."""

import math

import torch
from torch import Tensor


def private_bag_means(
    responses: Tensor,
    bag_id: Tensor,
    *,
    epsilon: float,
    bound: float,
    generator: torch.Generator,
) -> Tensor:
    r"""The mean response of each bag, with Laplace noise.

    $$\bar y_a = \frac1{k_a}\sum_{i\in a}\min(\max(y_i, -B), B) +
    \mathrm{Laplace}\Big(\frac{2B}{k_a\,\epsilon}\Big)$$

    Args:
        responses: (N,), floating point, finite.
        bag_id: (N,), integers: the bag of each row, which must not depend on the responses.
        epsilon: what one call reveals about a response at most, above 0.
        bound: B, above 0, chosen without looking at the responses: larger ones are clipped.
        generator: where the noise comes from, on the device of the responses; of an unpredictable
            seed where the result is published.

    Returns:
        (N,), float64: for each row the noisy mean of its bag. One draw a bag.

    Raises:
        ValueError: a bad epsilon or bound, shapes that differ, or responses that are not finite.

    Notes:
        A response that changes moves the clipped mean of its bag by at most 2B/k, and no other one:
        the whole release is epsilon-differentially private in each response, features and bags
        being public. Each further release of the same responses adds its epsilon
        (`release_epsilon`), so draw once and keep the result, not anew in every epoch.

        Noise from floating point has gaps from which an attacker can learn more than epsilon
        (Mironov 2012); this is the mechanism for learning with such labels, no hardened release.

    Reference:
        A. Javanmard, L. Chen, V. Mirrokni, A. Badanidiyuru, G. Fu, "Learning from Aggregate
        responses: Instance Level versus Bag Level Loss Functions", 2024, arXiv 2401.11081, names
        a private mechanism; the sensitivity is the standard one and derived here. C. Dwork,
        F. McSherry, K. Nissim, A. Smith, "Calibrating Noise to Sensitivity in Private Data
        Analysis", 2006.
    """
    _above_0(epsilon=epsilon, bound=bound)
    if responses.dim() != 1 or bag_id.shape != responses.shape:
        raise ValueError(
            f"responses of shape {tuple(responses.shape)} and bag_id of shape "
            f"{tuple(bag_id.shape)} must be one number a row."
        )
    if not bool(responses.isfinite().all()):
        raise ValueError("responses: some are not finite, and clipping would not make NaN finite.")
    bags, of, size = bag_id.unique(return_inverse=True, return_counts=True)
    clipped = responses.double().clamp(-bound, bound)
    sums = clipped.new_zeros(len(bags)).index_add(0, of, clipped)
    # the difference of two exponential variables is a Laplace variable
    draws = clipped.new_empty(2, len(bags)).exponential_(generator=generator)
    scale = 2 * bound / (size.double() * epsilon)
    return (sums / size + scale * (draws[0] - draws[1]))[of]


def release_epsilon(scale: Tensor, size: Tensor, *, bound: float, releases: int = 1) -> float:
    r"""What noisy means of disjoint bags reveal about a response.

    $$\epsilon = r\,\max_a \frac{2B}{k_a\,b_a}$$

    for Laplace noise of scale $b_a$ on the mean of $k_a$ responses clipped to [-B, B]: bags that
    share no response compose in parallel, r releases of the same bags one after the other.

    Args:
        scale: (M,), b of each bag, above 0.
        size: (M,), k of each bag, at least 1.
        bound: B, above 0.
        releases: r, at least 1.

    Raises:
        ValueError: a value out of its range, or no bag.
    """
    _above_0(bound=bound, releases=releases)
    if scale.numel() == 0 or not bool(((scale > 0) & (size >= 1)).all()):
        raise ValueError("scale and size: at least one bag, a scale above 0 and a size from 1.")
    return releases * float((2 * bound / (size.double() * scale.double())).max())


def bag_risk(
    size: Tensor,
    *,
    samples: int,
    features: int,
    noise: float,
    bound: float,
    epsilon: float = math.inf,
    signal: float = 1.0,
) -> Tensor:
    r"""The error of least squares on private means of random bags, in the limit of large problems.

    With n samples in $m = n/k$ bags, d features, $\gamma = d/m$ and the noise of a bag's mean, in
    units of a feature's mean, $s^2 = \sigma^2 + 8B^2/(k\epsilon^2)$:

    $$R(k) = s^2\frac{\gamma}{1-\gamma}\ (\gamma < 1), \qquad
    R(k) = r^2\Big(1 - \frac1\gamma\Big) + \frac{s^2}{\gamma - 1}\ (\gamma > 1)$$

    Args:
        size: (...), k, above 0.
        samples: n.
        features: d.
        noise: $\sigma$ of a response around its linear mean, at least 0.
        bound: B of `private_bag_means`, taken to be large enough that nothing is clipped.
        epsilon: of `private_bag_means`; infinity, the default, for means without noise.
        signal: r, the length of the vector of coefficients.

    Returns:
        (...), float64: the expected squared error of a prediction above $\sigma^2$, of features
        that are independent, centred and of variance 1. Infinity where m equals d. For fewer bags
        than features the solution of least length.

    Notes:
        Derived here: averaging k features and the noise of k responses divides both variances by
        k, which leaves the known risk of least squares. The paper has its own theorem, which could
        not be read. The risk rises with k as long as there are more bags than features.

    Reference:
        T. Hastie, A. Montanari, S. Rosset, R. J. Tibshirani, "Surprises in High-Dimensional
        Ridgeless Least Squares Interpolation", 2019, arXiv 1903.08560, theorem 1.
    """
    _above_0(samples=samples, features=features, bound=bound, epsilon=epsilon)
    k = size.double()
    gamma = features * k / samples
    variance = noise**2 + 8 * bound**2 / (k * epsilon**2)
    below = variance * gamma / (1 - gamma)
    above = signal**2 * (1 - 1 / gamma) + variance / (gamma - 1)
    return torch.where(gamma == 1, torch.inf, torch.where(gamma < 1, below, above))


def optimal_bag_size(
    *,
    samples: int,
    features: int,
    noise: float,
    bound: float,
    epsilon: float = math.inf,
    signal: float = 1.0,
) -> int:
    """The size of bags with the smallest `bag_risk`, found by trying every one from 1 to n.

    Arguments as for `bag_risk`. It is 1 as long as the noise for privacy leaves anything to learn
    from many bags: aggregation pays where `features` is near `samples`, or where that noise is so
    large that few quiet bags are better than many loud ones.
    """
    size = torch.arange(1, samples + 1)
    known = {"noise": noise, "bound": bound, "epsilon": epsilon, "signal": signal}
    return int(size[bag_risk(size, samples=samples, features=features, **known).argmin()])


def _above_0(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value!r} must be above 0.")
