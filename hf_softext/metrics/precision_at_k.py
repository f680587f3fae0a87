"""How many of the k best guesses are right."""

from typing import Any

import numpy as np

from hf_softext.metrics._base import SoftextMetric, checked


def precision_at_k(scores: np.ndarray, references: np.ndarray, k: int = 1) -> float:
    r"""$\frac1N\sum_i \frac1k\,\bigl|\mathrm{top}_k(s_i) \cap P_i\bigr|$.

    Args:
        scores: (N, C), any; of equal ones the first wins.
        references: (N, C), multi-hot.
        k: from 1 to C.

    Raises:
        ValueError: nothing to score, shapes that differ, or k out of range.
    """
    scores, references = checked(scores, references)
    if scores.ndim != 2 or not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k!r} must be from 1 to the number of labels; scores {scores.shape}.")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(references > 0.5, best, axis=1).mean())


class PrecisionAtK(SoftextMetric):
    """The share of the k labels with the highest scores that are right; `compute(k=...)`."""

    name = "precision_at_k"
    scores = True

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `precision_at_k`."""
        return precision_at_k(predictions, references, **kwargs)
