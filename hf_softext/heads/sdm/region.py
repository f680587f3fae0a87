"""The high-reliability region: which similarity and which outputs keep every class accurate."""

from bisect import bisect_left, insort
from typing import NamedTuple

import torch
from torch import Tensor


class Region(NamedTuple):
    """Where predictions are admitted.

    Attributes:
        min_similarity: (), float32, the least rescaled similarity; inf: nothing is admitted.
        thresholds: (C,), float32, the least output of each predicted class; 0 if nothing is.
    """

    min_similarity: Tensor
    thresholds: Tensor


def find_region(
    probabilities: Tensor, similarity: Tensor, labels: Tensor, alpha: float, num_labels: int
) -> Region:
    r"""The least similarity above which the output of the true class is high enough in every class.

    For every candidate $t$, ascending, over the calibration rows with $q' \ge t$: $\psi_c$ is the
    $(1-\alpha)$ quantile of the true class's output among rows of class c, the entry number
    $\min(\lfloor(1-\alpha) n_c\rfloor, n_c - 1)$ of $n_c$ in ascending order, and 0 where there are
    none. The first $t$ with all $\psi_c \ge \alpha$ is taken.

    Args:
        probabilities: (N,), the output of each row's true class.
        similarity: (N,), q', of the predicted class; rows below 1 are out of distribution.
        labels: (N,), int64.
        alpha: the accuracy to hold, in (0.5, 1].
        num_labels: C.

    Notes:
        The product is rounded as the authors' code does it: (1 - 0.9) * 10 counts as 0. One class
        that cannot be had at alpha makes the region empty for all; `threshold_curve` shows which.
    """
    curve = _Curve(probabilities, similarity, labels, alpha, num_labels)
    for level in curve:
        if curve.failing == 0:
            thresholds = torch.tensor(curve.quantiles, device=labels.device)
            return Region(torch.tensor(level, device=labels.device), thresholds)
    return Region(
        torch.tensor(torch.inf, device=labels.device),
        torch.zeros(num_labels, device=labels.device),
    )


def threshold_curve(
    probabilities: Tensor, similarity: Tensor, labels: Tensor, alpha: float, num_labels: int
) -> tuple[Tensor, Tensor]:
    r"""All that `find_region` looks at: candidates (T,) and $\psi$ (T, C); arguments as there.

    A class whose column stays below alpha is why nothing is admitted: it needs more rows, a lower
    alpha, or to be one with the class that it is mistaken for.
    """
    curve = _Curve(probabilities, similarity, labels, alpha, num_labels)
    found = [(level, list(curve.quantiles)) for level in curve]
    levels = torch.tensor([level for level, _ in found], dtype=torch.float32)
    return levels, torch.tensor([row for _, row in found]).reshape(len(found), num_labels)


class _Curve:
    """Quantiles while the rows of least similarity leave: a sorted list a class, so that a leaving
    row costs one bisection, and only its class is looked at again."""

    def __init__(
        self,
        probabilities: Tensor,
        similarity: Tensor,
        labels: Tensor,
        alpha: float,
        num_labels: int,
    ):
        kept = similarity >= 1
        order = similarity[kept].argsort(stable=True)
        columns = (similarity, labels, probabilities)
        self.rows = list(zip(*(column[kept][order].tolist() for column in columns), strict=True))
        self.alpha = alpha
        self.outputs: list[list[float]] = [[] for _ in range(num_labels)]
        for _, label, output in self.rows:
            insort(self.outputs[label], output)
        self.quantiles = [self._quantile(outputs) for outputs in self.outputs]
        self.failing = sum(value < alpha for value in self.quantiles)

    def __iter__(self):
        start = 0
        while start < len(self.rows):
            level = self.rows[start][0]
            yield level
            changed = set()
            while start < len(self.rows) and self.rows[start][0] == level:
                _, label, output = self.rows[start]
                outputs = self.outputs[label]
                del outputs[bisect_left(outputs, output)]
                changed.add(label)
                start += 1
            for label in changed:
                before, now = self.quantiles[label], self._quantile(self.outputs[label])
                self.failing += (now < self.alpha) - (before < self.alpha)
                self.quantiles[label] = now

    def _quantile(self, outputs: list[float]) -> float:
        count = len(outputs)
        return outputs[min(int((1 - self.alpha) * count), count - 1)] if count else 0.0
