"""A metric of the confusion matrix as the loss."""

import math
from typing import Any

import torch
from torch import Tensor

from hf_softext.losses.base import SoftextLoss

AVERAGES = ("macro", "micro")


class AnyLoss(SoftextLoss):
    r"""1 - metric, of counts in which each row is nearly all positive or all negative.

    $$a = \sigma\bigl(L(\sigma(z) - \tfrac12)\bigr), \qquad TP = \sum_i a_i y_i,\quad
    FP = \sum_i a_i (1 - y_i),\quad FN = \sum_i (1 - a_i) y_i,\quad TN = \sum_i (1 - a_i)(1 - y_i)$$

    | metric | |
    |---|---|
    | f_beta | $(1+\beta^2)TP / ((1+\beta^2)TP + \beta^2 FN + FP)$ |
    | accuracy | $(TP + TN) / N$ |
    | g_mean | $\sqrt{TPR \cdot TNR}$, $TPR = TP/(TP+FN)$, $TNR = TN/(TN+FP)$ |
    | balanced_accuracy | $(TPR + TNR) / 2$ |

    Args:
        metric: one of these; "f_beta" by default.
        beta: of f_beta, how much more recall counts than precision, > 0; 1 by default.
        amplify: $L > 0$. 73, the default, as the authors'. The derivative is $L a(1-a)\,p(1-p)$:
            next to nothing for a p far from 1/2, also of a row that is wrong; start from weights
            trained with cross-entropy, or lower it.
        average: of several labels: the mean of their metrics ("macro", the default), or the metric
            of all their counts together ("micro").
        **common: `ignore_index`.

    Notes:
        No sum over rows: the metric is that of each micro-batch of each process, and the mean over
        them is not the metric of all. Give it the largest micro-batch there is room for; of few
        rows with one positive the counts say little.

        A rate of a class that no row of the batch has is left out of g_mean and balanced_accuracy,
        which are then the rate of the other. f_beta without a positive is 0, the loss 1 with a
        derivative of 0. The authors' code divides by 0 there. It also takes N from the whole
        training set, so that it is for full batches alone; here N is the batch.

    Reference:
        D. Han, N. Moniz, N. V. Chawla, "AnyLoss: Transforming Classification Metrics into Loss
        Functions", 2024, arXiv 2405.14745. Several labels are this package's own.
    """

    name = "anyloss"
    kinds = frozenset({"binary", "multilabel"})
    decomposable = False

    def __init__(
        self,
        metric: str = "f_beta",
        beta: float = 1.0,
        amplify: float = 73.0,
        average: str = "macro",
        **common: Any,
    ):
        super().__init__(**common)
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r} must be one of {', '.join(METRICS)}.")
        if average not in AVERAGES:
            raise ValueError(f"average={average!r} must be one of {', '.join(AVERAGES)}.")
        for name, value in (("beta", beta), ("amplify", amplify)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be above 0, and finite.")
        self.metric = metric
        self.beta = beta
        self.amplify = amplify
        self.average = average

    def over_batch(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """A scalar for logits and labels (N, C)."""
        if self.average == "micro":
            logits, labels = logits.reshape(-1, 1), labels.reshape(-1, 1)
        # sigmoid(z) - 1/2
        steep = 0.5 * self.amplify * torch.tanh(0.5 * logits)
        # 1 - a by itself, as the difference would be 0 where a is nearly 1
        yes, no = steep.sigmoid(), (-steep).sigmoid()
        tp, fp = (yes * labels).sum(0), (yes * (1 - labels)).sum(0)
        fn, tn = (no * labels).sum(0), (no * (1 - labels)).sum(0)
        return 1 - METRICS[self.metric](tp, fp, fn, tn, self.beta).mean()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / torch.where(whole == 0, 1.0, whole)


def _f_beta(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, beta: float) -> Tensor:
    hits = (1 + beta**2) * tp
    return _ratio(hits, hits + beta**2 * fn + fp)


def _accuracy(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, beta: float) -> Tensor:
    return (tp + tn) / (tp + fp + fn + tn)


def _rates(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> tuple[Tensor, Tensor]:
    """TPR and TNR, each that of the other class where its own is absent."""
    positives, negatives = tp + fn, tn + fp
    tpr, tnr = _ratio(tp, positives), _ratio(tn, negatives)
    return torch.where(positives == 0, tnr, tpr), torch.where(negatives == 0, tpr, tnr)


def _g_mean(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, beta: float) -> Tensor:
    tpr, tnr = _rates(tp, fp, fn, tn)
    product = tpr * tnr
    # the derivative of a root is infinite at 0
    return product.clamp(min=torch.finfo(product.dtype).tiny).sqrt()


def _balanced_accuracy(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, beta: float) -> Tensor:
    tpr, tnr = _rates(tp, fp, fn, tn)
    return (tpr + tnr) / 2


METRICS = {
    "f_beta": _f_beta,
    "accuracy": _accuracy,
    "g_mean": _g_mean,
    "balanced_accuracy": _balanced_accuracy,
}
