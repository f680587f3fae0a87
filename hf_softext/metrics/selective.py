"""How good a model is that may decline to answer, and how well a score tells when it should."""

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from hf_softext.metrics._base import SoftextMetric, checked


def selective_accuracy(
    predictions: np.ndarray, references: np.ndarray, admit: np.ndarray
) -> dict[str, float]:
    r"""What is right of the answers that were given.

    With A the rows admitted, $\mathrm{acc}(S) = \frac1{|S|}\sum_{i \in S} [\hat y_i = y_i]$:
    "accuracy" is acc(A), "admitted" is |A| / N, "lowest_by_class" is the least of
    $\mathrm{acc}(\{i \in A: y_i = c\})$ over the classes and "lowest_by_prediction" that of
    $\mathrm{acc}(\{i \in A: \hat y_i = c\})$. The last two show a class that pays for the average.

    Args:
        predictions: (N,), classes.
        references: (N,), classes.
        admit: (N,), bool.

    Returns:
        The four. A class without a row in A has no say; with nothing admitted, the three accuracies
        are NaN and the share is 0.

    Raises:
        ValueError: nothing to score, or shapes that differ.
    """
    predictions, references = checked(predictions, references)
    admit, _ = checked(np.asarray(admit).astype(bool), references)
    right, true, guess = (
        (predictions == references)[admit],
        references[admit],
        predictions[admit],
    )
    return {
        "accuracy": _mean(right),
        "admitted": float(admit.mean()),
        "lowest_by_class": min((_mean(right[true == c]) for c in np.unique(true)), default=np.nan),
        "lowest_by_prediction": min(
            (_mean(right[guess == c]) for c in np.unique(guess)), default=np.nan
        ),
    }


def aurc(predictions: np.ndarray, references: np.ndarray, confidence: np.ndarray) -> float:
    r"""Area under the risk-coverage curve, $\frac1N\sum_{k=1}^N \frac1k\sum_{i \le k} e_{(i)}$.

    $e_{(i)}$ is 1 where the row with the i-th highest confidence is wrong. 0 is best; a confidence
    that knows nothing gives the error rate.

    Args:
        predictions: (N,), classes.
        references: (N,), classes.
        confidence: (N,), any real numbers; rows that are equal share their errors, which is the
            mean over all ways to order them. NaN counts as the lowest.

    Raises:
        ValueError: nothing to score, or shapes that differ.

    Reference:
        Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
        Classifiers", 2019, arXiv 1805.08206.
    """
    predictions, references = checked(predictions, references)
    confidence, _ = checked(np.asarray(confidence, dtype=np.float64), references)
    confidence = np.where(np.isnan(confidence), -np.inf, confidence)
    _, group, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=predictions != references) / count
    risk = np.cumsum(np.repeat(wrong, count)) / np.arange(1, len(group) + 1)
    return float(risk.mean())


def auroc(scores: np.ndarray, references: np.ndarray) -> float:
    r"""The chance that a row of the one kind scores above a row of the other; a tie counts half.

    Args:
        scores: (N,), any real numbers; NaN counts as the lowest.
        references: (N,), 1 for what is to score high (in distribution), 0 for the rest.

    Raises:
        ValueError: shapes that differ, or a kind without a row.
    """
    high, low = _two_kinds(scores, references)
    _, inverse, count = np.unique(
        np.concatenate([high, low]), return_inverse=True, return_counts=True
    )
    # of equal values, each has the mean of their ranks
    rank = np.cumsum(count) - (count - 1) / 2
    above = rank[inverse[: len(high)]].sum() - len(high) * (len(high) + 1) / 2
    return float(above / (len(high) * len(low)))


def tnr_at_tpr(scores: np.ndarray, references: np.ndarray, tpr: float = 0.95) -> float:
    r"""The share of the one kind that is turned away when a share `tpr` of the other is let in.

    The threshold is the highest that lets in at least that share; what equals it is let in.

    Args:
        scores: (N,), any real numbers; NaN counts as the lowest.
        references: (N,), 1 for what is to score high (in distribution), 0 for the rest.
        tpr: above 0 and at most 1.

    Raises:
        ValueError: shapes that differ, a kind without a row, or `tpr` out of range.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr={tpr!r} must be above 0 and at most 1.")
    high, low = _two_kinds(scores, references)
    # 1e-9: 0.95 * 20 is not to become 20
    needed = int(np.ceil(tpr * len(high) - 1e-9))
    return float((low < np.sort(high)[len(high) - needed]).mean())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _two_kinds(scores: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, references = checked(np.asarray(scores, dtype=np.float64), references)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    high = references.astype(bool)
    if high.all() or not high.any():
        raise ValueError(
            f"references has {int(high.sum())} rows of 1 and {int((~high).sum())} of 0: both "
            "kinds are needed."
        )
    return scores[high], scores[~high]


class _Columns(SoftextMetric):
    """A metric with columns of its own kinds."""

    kinds: ClassVar[dict[str, str]]

    def _info(self) -> evaluate.MetricInfo:
        info = super()._info()
        info.features = datasets.Features(
            {name: datasets.Value(kind) for name, kind in self.kinds.items()}
        )
        return info


class SelectiveAccuracy(_Columns):
    """Accuracy of the admitted rows and their share; `compute(admit=...)`."""

    name = "selective_accuracy"
    kinds: ClassVar = {"predictions": "int64", "references": "int64", "admit": "bool"}

    def _compute(self, *, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        """See `selective_accuracy`."""
        return selective_accuracy(np.asarray(predictions), np.asarray(references), **kwargs)


class Aurc(_Columns):
    """Area under the risk-coverage curve; `compute(confidence=...)`."""

    name = "aurc"
    kinds: ClassVar = {"predictions": "int64", "references": "int64", "confidence": "float64"}

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `aurc`."""
        return aurc(predictions, references, **kwargs)


class Auroc(_Columns):
    """Area under the receiver's curve of a score; predictions are scores, references 0 or 1."""

    name = "auroc"
    kinds: ClassVar = {"predictions": "float64", "references": "int64"}

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `auroc`."""
        return auroc(predictions, references)


class TnrAtTpr(_Columns):
    """True negatives at a share of true positives; `compute(tpr=...)`."""

    name = "tnr_at_tpr"
    kinds: ClassVar = {"predictions": "float64", "references": "int64"}

    def value(self, predictions: np.ndarray, references: np.ndarray, **kwargs: Any) -> float:
        """See `tnr_at_tpr`."""
        return tnr_at_tpr(predictions, references, **kwargs)
