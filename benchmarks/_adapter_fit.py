"""How every adapter of `adapters.py` is trained, whatever the task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from _adapter_methods import Method
from torch import Tensor, nn

WARM_UP = 0.1


@dataclass(frozen=True)
class Outcome:
    """Of one training.

    Attributes:
        valid: accuracy, or loss, on the validation rows.
        test: measures the same on the test rows, when it is called.
        adapter: trained numbers of the adapter.
        whole: all trained numbers.
    """

    valid: float
    test: Callable[[], float]
    adapter: int
    whole: int


class Task(Protocol):
    """Data, a frozen model and how long an adapter is trained.

    Attributes:
        name: in the CSV.
        plan: sizes, as the CSV has them.
        sign: 1 where more is better, -1 where less is.
        shift: added to the centre of every grid of learning rates.
    """

    name: str
    plan: dict[str, Any]
    sign: int
    shift: int

    def run(self, method: Method, rate: float, seed: int) -> Outcome:
        """Train one adapter at one learning rate."""
        ...

    def step(self, method: Method) -> Callable[[], None]:
        """A step of training on one and the same batch, to be measured."""
        ...


def fit(
    parameter_groups: list[dict[str, Any]], losses: Iterator[Callable[[], Tensor]], steps: int
) -> None:
    """AdamW without weight decay; the rates rise over the first tenth and then fall to 0."""
    optimizer = torch.optim.AdamW(parameter_groups, weight_decay=0.0, fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    warm = max(1, round(WARM_UP * steps))
    for step, loss in zip(range(steps), losses, strict=False):
        factor = min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def one_step(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of the same optimizer that changes next to nothing, as often as it is called."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, weight_decay=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
