"""Generative against discriminative: which linear probe is better on these rows?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_softext.functional.logistic_regression import logistic_regression
from hf_softext.heads.labels import check_rows, class_numbers, every_class
from hf_softext.heads.naive_bayes import NaiveBayesProbe

PROBES = ("naive_bayes", "logistic", "auto")


@dataclass(frozen=True)
class ProbeComparison:
    """What cross-validation says; every row was held out once.

    Attributes:
        rows: N.
        classes: C.
        folds: parts that were held out in turn.
        naive_bayes_error: share of held-out rows that naive Bayes has wrong.
        logistic_error: the same of logistic regression.
        only_naive_bayes: rows that naive Bayes alone has right.
        only_logistic: rows that logistic regression alone has right.
    """

    rows: int
    classes: int
    folds: int
    naive_bayes_error: float
    logistic_error: float
    only_naive_bayes: int
    only_logistic: int

    @property
    def winner(self) -> str:
        """ "naive_bayes" or "logistic", whichever has fewer wrong, be it by chance; of equals the
        one that needs no training."""
        return "naive_bayes" if self.naive_bayes_error <= self.logistic_error else "logistic"

    @property
    def p_value(self) -> float:
        """Of an exact sign test (McNemar) on the rows that only one has right, two-sided.

        The folds share most of their training rows, so it is a guide and not a proof.
        """
        count = self.only_naive_bayes + self.only_logistic
        fewer = min(self.only_naive_bayes, self.only_logistic)
        tail = sum(math.comb(count, hits) for hits in range(fewer + 1)) / 2**count
        return min(1.0, 2.0 * tail)

    def __str__(self) -> str:
        p = f"(p = {self.p_value:.2g})"
        said = f"{self.winner} wins {p}" if self.p_value < 0.05 else f"no winner {p}"
        return (
            f"{self.rows} rows, {self.classes} classes, {self.folds} folds: naive Bayes has "
            f"{self.naive_bayes_error:.1%} wrong, logistic regression {self.logistic_error:.1%}; "
            f"{said}."
        )


def compare_probes(
    features: Tensor, labels: Any, *, folds: int = 5, c: float = 1.0, seed: int = 0
) -> ProbeComparison:
    """Cross-validate naive Bayes against logistic regression.

    Args:
        features: (N, D), floating point.
        labels: (N,), whole numbers from 0 on; at least two rows of every class.
        folds: parts, each with its share of every class; no more than the rarest class has rows.
        c: of the logistic regression, on standardised features; see `logistic_regression`. One that
            suits the number of rows makes a better opponent.
        seed: of the parts.

    Raises:
        ValueError: as `NaiveBayesProbe.fit_features` says, `folds` below 2, or a class of one row.
    """
    numbers = _numbers(features, labels)
    if folds < 2:
        raise ValueError(f"folds={folds!r} must be at least 2.")
    count = torch.bincount(numbers)
    if int(count.min()) < 2:
        raise ValueError(
            f"class {int(count.argmin())} has {int(count.min())} rows: to hold one out, each class "
            "needs two."
        )
    folds = min(folds, int(count.min()))
    part = _folds(numbers, folds, seed)
    right = {name: torch.zeros(len(numbers), dtype=torch.bool) for name in PROBES[:2]}
    for fold in range(folds):
        held = part == fold
        for name, hits in right.items():
            layer = fit_probe(features[~held], numbers[~held], name, c=c)
            guess = F.linear(features[held].double(), layer.weight, layer.bias).argmax(-1)
            hits[held.cpu()] = (guess == numbers[held]).cpu()
    bayes, logistic = right.values()
    return ProbeComparison(
        rows=len(numbers),
        classes=len(count),
        folds=folds,
        naive_bayes_error=1.0 - bayes.double().mean().item(),
        logistic_error=1.0 - logistic.double().mean().item(),
        only_naive_bayes=int((bayes & ~logistic).sum()),
        only_logistic=int((logistic & ~bayes).sum()),
    )


@torch.no_grad()
def fit_probe(
    features: Tensor, labels: Any, probe: str = "auto", *, c: float = 1.0, seed: int = 0
) -> nn.Linear:
    """A linear probe as a layer, float64.

    Args:
        features: (N, D), floating point.
        labels: (N,), whole numbers from 0 on, every one of which has a row.
        probe: "naive_bayes"; "logistic", on standardised features, which the layer takes back; or
            "auto", the winner of `compare_probes`.
        c: of the logistic regression.
        seed: of the comparison.

    Raises:
        ValueError: an unknown probe, or as `compare_probes` says.
    """
    if probe not in PROBES:
        raise ValueError(f"probe={probe!r} must be one of {', '.join(PROBES)}.")
    numbers = _numbers(features, labels)
    if probe == "auto":
        probe = compare_probes(features, numbers, c=c, seed=seed).winner
    if probe == "naive_bayes":
        return NaiveBayesProbe().fit_features(features, numbers).to_linear(torch.float64)
    rows = features.double()
    middle, width = rows.mean(0), rows.std(0, correction=0)
    # a feature that is the same in all rows says nothing
    width = torch.where(width > 0, width, torch.ones_like(width))
    weight, bias = logistic_regression(
        (rows - middle) / width, numbers, int(numbers.max()) + 1, c=c
    )
    layer = nn.Linear(weight.shape[1], len(weight), device=rows.device, dtype=torch.float64)
    layer.weight.copy_(weight / width)
    layer.bias.copy_(bias - layer.weight @ middle)
    return layer


def _numbers(features: Tensor, labels: Any) -> Tensor:
    check_rows(features)
    numbers = class_numbers(labels, len(features)).to(features.device)
    every_class(numbers)
    return numbers


def _folds(numbers: Tensor, folds: int, seed: int) -> Tensor:
    """The part of each row; of every class the parts have equally many, give or take one."""
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    order = order.to(numbers.device)
    # classes one after the other, each in a drawn order, dealt out in turn
    order = order[numbers[order].argsort(stable=True)]
    part = torch.empty_like(numbers)
    part[order] = torch.arange(len(numbers), device=numbers.device) % folds
    return part
