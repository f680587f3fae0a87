"""Balanced accuracy."""

from typing import Any

import numpy as np

from hf_softext.metrics._base import SoftextMetric, recalls


def balanced_accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    r"""$\frac1C\sum_c \mathrm{recall}_c$ over the classes that occur.

    Args:
        predictions: (N,), classes.
        references: (N,), classes.

    Raises:
        ValueError: nothing to score, or shapes that differ.
    """
    return float(recalls(predictions, references).mean())


class BalancedAccuracy(SoftextMetric):
    """The mean over the classes of the share of their rows that is found."""

    name = "balanced_accuracy"

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `balanced_accuracy`."""
        return balanced_accuracy(predictions, references)
