"""Training the adaptor on one division of the rows."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_softext.functional.sdm import sdm_loss, softmax_similarity
from hf_softext.heads.sdm.adaptor import ExemplarAdaptor
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.evidence import (
    Evidence,
    Support,
    distance_lists,
    distance_quantile,
    find_evidence,
)

# weights of a layer up to which a step is too small to be shared among threads
_SMALL = 2**20


@dataclass
class Half:
    """Rows and what the current weights say about them.

    Attributes:
        features: (N, D), float32, standardized.
        labels: (N,), int64.
        exemplars: (N, M).
        logits: (N, C).
        evidence: similarity and squared distance.
        distance: (N,), d.
    """

    features: Tensor
    labels: Tensor
    exemplars: Tensor = field(init=False)
    logits: Tensor = field(init=False)
    evidence: Evidence = field(init=False)
    distance: Tensor = field(init=False)

    def loss(self) -> Tensor:
        """The mean over classes of the mean loss of a class."""
        each = sdm_loss(self.logits, self.labels, self.evidence.similarity, self.distance)
        return _balanced(each, self.labels)

    @property
    def predictions(self) -> Tensor:
        """(N,), int64."""
        return self.logits.argmax(1)


def measure(adaptor: ExemplarAdaptor, train: Half, calibration: Half, config: SdmConfig) -> None:
    """Have both halves hold what these weights give: the support is the train half.

    Distances of the train half are ranked among its own, those of calibration among theirs.
    """
    num_labels = adaptor.classifier.out_features
    with torch.no_grad():
        for half in (train, calibration):
            half.exemplars, half.logits = adaptor(half.features)
    support = Support(train.exemplars, train.labels, train.predictions)
    for half in (train, calibration):
        half.evidence = find_evidence(
            half.exemplars,
            half.predictions,
            support,
            max_q=config.max_q,
            index=config.index,
            are_support=half is train,
        )
        lists = distance_lists(half.evidence, half.labels, num_labels)
        half.distance = distance_quantile(lists, half.evidence.squared_distance)


class SplitTraining:
    """Adam on the SDM loss, with similarity and distance searched again after every epoch.

    The first epoch has q = e - 2 and d = 1, which is cross-entropy. After each, the weights with
    the lowest balanced calibration loss are kept; of equal ones the later.

    While a class has no training row with a similarity above 0, d is 0 for every row, and so is the
    gradient: the published training stands still for ever. Ours then has another epoch of
    cross-entropy, which changes nothing where the published one moves.

    Args:
        train: the support half, standardized.
        calibration: the other, standardized by the same.
        adaptor: is trained in place, and ends with the best weights.
        config: the settings.
        generator: gives each epoch's order.
        permutations: orders to take instead, one (N,) for each epoch.

    Attributes:
        history: for each epoch that was looked at: epoch, mean loss of the minibatches, balanced
            loss of both halves, mean over classes of the mean similarity of calibration rows.
        best_loss: the lowest balanced calibration loss.
        best_epoch: its epoch, from 1.
        epoch: how many are done.
    """

    def __init__(
        self,
        train: Half,
        calibration: Half,
        adaptor: ExemplarAdaptor,
        config: SdmConfig,
        generator: torch.Generator,
        permutations: Iterable[Tensor] | None = None,
    ):
        self.train, self.calibration, self.config = train, calibration, config
        self.adaptor, self.generator = adaptor, generator
        self.permutations = None if permutations is None else iter(permutations)
        self.optimizer = torch.optim.Adam(adaptor.parameters(), lr=config.learning_rate)
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch, self.epoch = float("inf"), 0, 0
        self._start_over()
        self.best = self._weights()

    def run(self, after_epoch: Callable[["SplitTraining"], Any] | None = None) -> None:
        """Train to the last epoch, and measure with the best weights.

        Raises:
            ValueError: the loss is not finite.
        """
        while self.epoch < self.config.epochs:
            with _threads(self.adaptor):
                loss = self._train_epoch()
            self.epoch += 1
            if self.epoch % self.config.refresh_every == 0 or self.epoch == self.config.epochs:
                self._look(loss)
            if after_epoch is not None:
                after_epoch(self)
        self.adaptor.load_state_dict(self.best)
        measure(self.adaptor, self.train, self.calibration, self.config)

    def _train_epoch(self) -> float:
        labels, features = self.train.labels, self.train.features
        if self.permutations is None:
            order = torch.randperm(len(labels), generator=self.generator)
        else:
            order = next(self.permutations)
        losses = []
        for rows in order.to(labels.device).split(self.config.batch_size):
            logits = self.adaptor(features[rows])[1]
            loss = sdm_loss(logits, labels[rows], self.similarity[rows], self.distance[rows]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).double().mean())

    def _look(self, loss: float) -> None:
        measure(self.adaptor, self.train, self.calibration, self.config)
        if bool(self.train.distance.any()):
            self.similarity, self.distance = self.train.evidence.similarity, self.train.distance
        else:
            self._start_over()
        found = {
            "epoch": self.epoch,
            "minibatch_loss": loss,
            "train_loss": float(self.train.loss()),
            "calibration_loss": float(self.calibration.loss()),
            "calibration_similarity": float(
                _balanced(self.calibration.evidence.similarity, self.calibration.labels)
            ),
        }
        if not all(map(math.isfinite, found.values())):
            raise ValueError(
                f"the loss is not finite after epoch {self.epoch}: lower learning_rate="
                f"{self.config.learning_rate!r}, or look for extreme features."
            )
        self.history.append(found)
        if found["calibration_loss"] <= self.best_loss:
            self.best_loss, self.best_epoch = found["calibration_loss"], self.epoch
            self.best = self._weights()

    def _start_over(self) -> None:
        self.similarity = torch.full_like(self.train.features[:, 0], softmax_similarity())
        self.distance = torch.ones_like(self.similarity)

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.adaptor.state_dict().items()}


def _balanced(values: Tensor, labels: Tensor) -> Tensor:
    # class by class, so that the order of summation is always the same
    return torch.stack([values[labels == label].mean() for label in labels.unique()]).mean()


@contextmanager
def _threads(adaptor: ExemplarAdaptor) -> Iterator[None]:
    """One thread for small steps: where cores are shared, waiting for the others takes many times
    longer than the work."""
    before = torch.get_num_threads()
    if adaptor.exemplar.weight.numel() <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
