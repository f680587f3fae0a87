"""What a classifier is tested by."""

import numpy as np

from hf_softext.metrics import balanced_accuracy, f_beta, precision_at_k


def classification_scores(logits: np.ndarray, labels: np.ndarray, kind: str) -> dict[str, float]:
    """Scores of a classifier on a test set.

    Args:
        logits: (N, C), or (N, 1) for a binary head or a regression.
        labels: (N,) classes, (N, C) multi-hot, or (N,) values.
        kind: the model's `problem_type`.

    Returns:
        For classes: `accuracy`, `balanced_accuracy` and `macro_f1`. For multi-hot labels, a label
        predicted where its logit is above 0: `micro_f1`, `macro_f1`, and `precision_at_1`. For
        values: `mse` and `r2`.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if kind == "regression":
        error = np.mean((logits.reshape(-1) - labels.reshape(-1)) ** 2)
        return {"mse": float(error), "r2": float(1 - error / max(np.var(labels), 1e-12))}
    if kind == "multi_label_classification":
        return {
            "micro_f1": f_beta(logits > 0, labels, average="micro"),
            "macro_f1": f_beta(logits > 0, labels, average="macro"),
            "precision_at_1": precision_at_k(logits, labels, k=1),
        }
    found = (logits[:, 0] > 0).astype(int) if logits.shape[-1] == 1 else logits.argmax(-1)
    return {
        "accuracy": float(np.mean(found == labels)),
        "balanced_accuracy": balanced_accuracy(found, labels),
        "macro_f1": f_beta(found, labels, average="macro"),
    }
