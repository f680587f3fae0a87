"""Learning from labels that are known as means of bags."""

from typing import Any

import torch
from torch import Tensor

from hf_softext.losses.base import SoftextLoss

LEVELS = ("bag", "instance", "mix")
BASES = ("mse", "ce")


class AggregateLoss(SoftextLoss):
    r"""Fits the mean of the predictions of a bag to its label, or each of them, or between.

    $$L = \frac1m\sum_a\;(1-\rho)\,\ell\Big(\bar y_a,\ \frac1{k_a}\sum_{i\in a} f_i\Big) +
    \rho\,\frac1{k_a}\sum_{i\in a}\ell(\bar y_a, f_i)$$

    over m bags of $k_a$ rows each. Every row carries the label of its bag. $\ell$ is

    - "mse": the squared difference, f the logits; $\bar y$ the mean response, a float for each
      logit (their mean is taken). Then $L$ is the bag loss plus $\rho$ times the variance of the
      predictions within bags;
    - "ce": cross-entropy, f the softmax of the logits; $\bar y$ the shares of the classes in the
      bag, floats of shape (N, C) that sum to 1. Classes as integers are bags of one class only.

    Args:
        level: "bag", $\rho = 0$, the default; "instance", $\rho = 1$; "mix".
        rho: $\rho$ of "mix", from 0 to 1; 0.5 by default (ours: it is to be validated).
        base: "mse", the default, or "ce".
        **common: those of `SoftextLoss`, without class_weight.

    Raises:
        ValueError: rows of a bag with different labels, or for "ce" labels that are no shares.

    Notes:
        Needs `bag_id`, (...), integers. Where it is absent in evaluation each row is a bag: labels
        of single rows are what one evaluates with. A bag must be whole within a micro-batch, which
        nothing here can see; of a bag cut in two each part counts as a bag. `num_items` is the
        number of bags.

        The bag loss takes the logarithm of the mean probability from the log-probabilities, and so
        stays finite where all of a bag are far off. The instance loss shrinks: of bags of k drawn
        at random, least squares gives 1/k of the true coefficients, however many bags there are.

    Reference:
        A. Javanmard, L. Chen, V. Mirrokni, A. Badanidiyuru, G. Fu, "Learning from Aggregate
        responses: Instance Level versus Bag Level Loss Functions", 2024, arXiv 2401.11081.
    """

    name = "aggregate"
    kinds = frozenset({"multiclass", "regression"})
    needs = frozenset({"bag_id"})

    def __init__(self, level: str = "bag", rho: float = 0.5, base: str = "mse", **common: Any):
        super().__init__(**common)
        if self.class_weight is not None:
            raise ValueError("class_weight: a bag has no class; weigh its rows by sample_weight.")
        for name, value, known in (("level", level, LEVELS), ("base", base, BASES)):
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}.")
        if not 0 <= rho <= 1:
            raise ValueError(f"rho={rho!r} must be from 0, the bag loss, to 1, the instance loss.")
        self.level = level
        self.rho = rho
        self.base = base

    def count(
        self,
        labels: Tensor,
        sample_weight: Tensor | None = None,
        bag_id: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """The number of bags of which a row counts; with sample weights, the sum of bags' means."""
        weight = self.weights(labels, sample_weight).reshape(-1)
        if bag_id is None:
            return weight.sum()
        counts = (self.weights(labels) > 0).reshape(-1)
        bag = _number_bags(bag_id.to(labels.device).reshape(-1)[counts])
        return (weight[counts] / _over_bags(torch.ones_like(weight[counts]), bag)).sum()

    def per_sample(
        self, logits: Tensor, labels: Tensor, bag_id: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """(N,), each row's part of the loss of its bag, for logits (N, C) and bag_id (N,)."""
        rows = torch.arange(len(logits), device=logits.device)
        bag = rows if bag_id is None else _number_bags(bag_id.to(logits.device))
        if labels.dim() == 1:
            if self.base != "ce":
                raise ValueError(f"labels are {labels.dtype}: base='mse' takes a float a logit.")
            labels = torch.nn.functional.one_hot(labels, logits.shape[-1]).to(logits)
        self._check(labels, bag, rows)
        size = _over_bags(torch.ones_like(logits[:, 0]), bag)
        rho = {"bag": 0.0, "instance": 1.0, "mix": self.rho}[self.level]
        if self.base == "mse":
            mean = _over_bags(logits, bag) / size[:, None]
            whole = (mean - labels).square().mean(-1)
            single = (logits - labels).square().mean(-1)
        else:
            log_p = logits.log_softmax(-1)
            whole = -(labels * _log_mean(log_p, bag, size)).sum(-1)
            single = -(labels * log_p).sum(-1)
        return ((1 - rho) * whole + rho * single) / size

    def _check(self, labels: Tensor, bag: Tensor, rows: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        first = rows.new_full((len(bag),), len(bag)).scatter_reduce(0, bag, rows, "amin")
        # nan is not itself, and is for the loss to show
        other = (labels != labels[first[bag]]) & ~labels.isnan()
        if bool(other.any()):
            at = int(other.any(-1).nonzero()[0, 0])
            raise ValueError(
                f"labels: row {at} of those that count has {labels[at].tolist()}, the first row of "
                f"its bag {labels[first[bag[at]]].tolist()}; each must have the label of the bag."
            )
        if self.base != "ce":
            return
        if labels.shape[-1] == 1:
            raise ValueError("base='ce' needs a logit for each class; for a share take two.")
        if bool((labels < 0).any()) or bool(((labels.sum(-1) - 1).abs() > 1e-3).any()):
            raise ValueError(
                "labels of base='ce' must be shares of the classes, at least 0 and of sum 1 in "
                "each row; noisy ones have to be projected first."
            )


def _number_bags(bag_id: Tensor) -> Tensor:
    """(N,), int64: the bags numbered from 0. Not unique, whose shape depends on the values."""
    ordered, order = bag_id.sort(stable=True)
    starts = (ordered[1:] != ordered[:-1]).long().cumsum(0)
    number = torch.cat([starts.new_zeros(min(len(bag_id), 1)), starts])
    return torch.empty_like(number).scatter(0, order, number)


def _over_bags(x: Tensor, bag: Tensor) -> Tensor:
    """The shape of x: for each row the sum of x over its bag."""
    return torch.zeros_like(x).index_add(0, bag, x)[bag]


def _log_mean(log_p: Tensor, bag: Tensor, size: Tensor) -> Tensor:
    """(N, C): for each row the logarithm of the mean of exp(log_p) over its bag."""
    index = bag[:, None].expand_as(log_p)
    largest = torch.full_like(log_p, -torch.inf).scatter_reduce(0, index, log_p.detach(), "amax")
    largest = largest[bag]
    return largest + (_over_bags((log_p - largest).exp(), bag) / size[:, None]).log()
