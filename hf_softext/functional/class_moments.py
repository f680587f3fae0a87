"""Counts, means and squared deviations of the rows of each class, in one pass over batches."""

from typing import NamedTuple

import torch
from torch import Tensor

# rows that are made float64 at a time
_CHUNK = 16384


class ClassMoments(NamedTuple):
    """What is known of the rows seen so far, float64.

    Attributes:
        count: (C,), rows of each class.
        mean: (C, D); 0 for a class without rows.
        spread: (C, D), sums of squared deviations from the class's mean.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor


def class_moments(features: Tensor, labels: Tensor, classes: int) -> ClassMoments:
    r"""$m_c$, $\mu_c = \frac1{m_c}\sum_{y_i=c} x_i$ and $\sum_{y_i=c} (x_i - \mu_c)^2$.

    Args:
        features: (N, D), floating point of any precision.
        labels: (N,), whole numbers from 0 to classes - 1.
        classes: C.

    Returns:
        The moments. Deviations are taken from the mean itself, and not as a difference of squares,
        which would lose all digits where the mean is far from 0.
    """
    found = _moments(features[:_CHUNK], labels[:_CHUNK], classes)
    for at in range(_CHUNK, len(features), _CHUNK):
        part = slice(at, at + _CHUNK)
        found = merge_moments(found, _moments(features[part], labels[part], classes))
    return found


def merge_moments(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    r"""The moments of the rows of both.

    $$\mu = \mu_a + \frac{m_b}{m_a + m_b}\delta, \qquad S = S_a + S_b + \frac{m_a m_b}{m_a + m_b}
    \delta^2, \qquad \delta = \mu_b - \mu_a$$

    for each class and feature.

    Args:
        first: over C classes and D features.
        second: of the same shapes.

    Reference:
        T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for
        Computing Sample Variances", 1979 (recalled; a test compares it with one pass).
    """
    count = first.count + second.count
    share = (second.count / count.clamp(min=1.0))[:, None]
    delta = second.mean - first.mean
    between = first.count[:, None] * share * delta.square()
    return ClassMoments(count, first.mean + share * delta, first.spread + second.spread + between)


def _moments(features: Tensor, labels: Tensor, classes: int) -> ClassMoments:
    rows = features.double()
    # a matrix product: index_add on CUDA does not give the same sum twice
    member = torch.nn.functional.one_hot(labels, classes).double().T
    count = member.sum(1)
    mean = member @ rows / count.clamp(min=1.0)[:, None]
    return ClassMoments(count, mean, member @ (rows - mean[labels]).square())
