"""What the metrics share: how they describe themselves, and what they refuse."""

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np


class SoftextMetric(evaluate.Metric):
    """A metric made without a hub: `Metric()`, then `compute`, `add_batch` or `evaluate.combine`.

    Attributes:
        name: the key of the result.
        scores: whether predictions are scores and references multi-hot, both (N, C), or both are
            classes, (N,).
    """

    name: ClassVar[str]
    scores: ClassVar[bool] = False

    def _info(self) -> evaluate.MetricInfo:
        if self.scores:
            kinds: dict[str, Any] = {
                "predictions": datasets.Sequence(datasets.Value("float32")),
                "references": datasets.Sequence(datasets.Value("int64")),
            }
        else:
            kinds = {name: datasets.Value("int64") for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="",
            features=datasets.Features(kinds),
        )

    def _compute(self, *, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return {self.name: self.value(np.asarray(predictions), np.asarray(references), **kwargs)}

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """The metric."""
        raise NotImplementedError


def checked(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of one shape.

    Raises:
        ValueError: there is nothing, or the shapes differ.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions {predictions.shape} and references {references.shape} must have one "
            "shape."
        )
    if references.size == 0:
        raise ValueError("predictions and references are empty: there is nothing to score.")
    return predictions, references


def recalls(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Share of each class's rows that is found, over the classes that occur."""
    predictions, references = checked(predictions, references)
    classes = np.unique(references)
    return np.array([np.mean(predictions[references == one] == one) for one in classes])
