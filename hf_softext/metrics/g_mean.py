"""The geometric mean of the recalls."""

from typing import Any

import numpy as np

from hf_softext.metrics._base import SoftextMetric, recalls


def g_mean(predictions: np.ndarray, references: np.ndarray) -> float:
    r"""$\bigl(\prod_c \mathrm{recall}_c\bigr)^{1/C}$ over the classes that occur.

    Args:
        predictions: (N,), classes.
        references: (N,), classes.

    Returns:
        From 0, where a class is never found, to 1.

    Raises:
        ValueError: nothing to score, or shapes that differ.

    Reference:
        M. Kubat, S. Matwin, "Addressing the Curse of Imbalanced Training Sets", 1997.
    """
    found = recalls(predictions, references)
    return float(np.prod(found) ** (1 / len(found)))


class GMean(SoftextMetric):
    """The geometric mean over the classes of the share of their rows that is found."""

    name = "g_mean"

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `g_mean`."""
        return g_mean(predictions, references)
