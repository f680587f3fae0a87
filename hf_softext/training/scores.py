"""What a classifier is tested by."""

from typing import Any

import numpy as np


def classification_scores(logits: np.ndarray, labels: np.ndarray, kind: str) -> dict[str, float]:
    r"""Scores of a classifier on a test set.

    Args:
        logits: (N, C), or (N, 1) for a binary head or a regression.
        labels: (N,) classes, (N, C) multi-hot, or (N,) values.
        kind: the model's `problem_type`.

    Returns:
        For classes: `accuracy`, `balanced_accuracy` (the mean over the classes of the share of
        their rows that is found) and `macro_f1`, over the classes that occur. For multi-hot
        labels, a label predicted where its logit is above 0: `micro_f1`, `macro_f1`, and
        `precision_at_1`, the share of rows whose largest logit is one of their labels. For values:
        `mse` and `r2`.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if kind == "regression":
        error = np.mean((logits.reshape(-1) - labels.reshape(-1)) ** 2)
        return {"mse": float(error), "r2": float(1 - error / max(np.var(labels), 1e-12))}
    if kind == "multi_label_classification":
        guess, truth = logits > 0, labels > 0.5
        best = truth[np.arange(len(truth)), logits.argmax(-1)]
        micro = _f1((guess & truth).sum(), guess.sum(), truth.sum())
        macro = _macro(guess, truth)
        return {"micro_f1": micro, "macro_f1": macro, "precision_at_1": float(best.mean())}
    found = (logits[:, 0] > 0).astype(int) if logits.shape[-1] == 1 else logits.argmax(-1)
    classes = np.unique(labels)
    recall = [np.mean(found[labels == one] == one) for one in classes]
    guess = found[:, None] == classes
    return {
        "accuracy": float(np.mean(found == labels)),
        "balanced_accuracy": float(np.mean(recall)),
        "macro_f1": _macro(guess, labels[:, None] == classes),
    }


def _macro(guess: np.ndarray, truth: np.ndarray) -> float:
    both = (guess & truth).sum(0)
    occurs = truth.any(0)
    scores = [_f1(*counts) for counts in zip(both, guess.sum(0), truth.sum(0), strict=True)]
    return float(np.mean(np.array(scores)[occurs])) if occurs.any() else 0.0


def _f1(both: Any, guessed: Any, true: Any) -> float:
    return float(2 * both / max(guessed + true, 1))
