"""F-beta of one class, or averaged over classes."""

from typing import Any

import numpy as np

from hf_softext.metrics._base import SoftextMetric, checked


def f_beta(
    predictions: np.ndarray, references: np.ndarray, beta: float = 1.0, average: str = "macro"
) -> float:
    r"""$F_\beta = \frac{(1+\beta^2)\,TP}{(1+\beta^2)\,TP + \beta^2 FN + FP}$.

    Args:
        predictions: (N,), classes; or (N, C), multi-hot.
        references: as `predictions`.
        beta: how much a missed row weighs against a false one; 1 weighs them alike.
        average: "macro": the mean over the classes that occur in `references`; "micro": from the
            counts of all; "binary": of class 1.

    Raises:
        ValueError: nothing to score, shapes that differ, an unknown average or one for another
            shape, or beta not above 0.
    """
    predictions, references = checked(predictions, references)
    if beta <= 0:
        raise ValueError(f"beta={beta!r} must be above 0.")
    if average not in ("macro", "micro", "binary"):
        raise ValueError(f"average={average!r} must be 'macro', 'micro' or 'binary'.")
    if average == "binary" and references.ndim > 1:
        raise ValueError(f"average='binary' is for classes, (N,), not for {references.shape}.")
    if references.ndim == 1:
        classes = np.array([1]) if average == "binary" else np.union1d(predictions, references)
        predictions, references = predictions[:, None] == classes, references[:, None] == classes
    guess, truth = predictions > 0.5, references > 0.5
    hit, guessed, true = (guess & truth).sum(0), guess.sum(0), truth.sum(0)
    if average == "micro":
        hit, guessed, true = hit.sum(), guessed.sum(), true.sum()
    score = (1 + beta**2) * hit / np.maximum(beta**2 * true + guessed, 1e-12)
    if average == "macro":
        score = score[true > 0] if (true > 0).any() else np.zeros(1)
    return float(np.mean(score))


class FBeta(SoftextMetric):
    """The weighted harmonic mean of precision and recall; `compute(beta=..., average=...)`."""

    name = "f_beta"

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `f_beta`."""
        return f_beta(predictions, references, **kwargs)
