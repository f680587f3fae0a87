"""What the experiments of `loss_evidence.py` share: the tries of a loss, and how a head trains."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from _loss_data import Split
from torch import Tensor, nn

from hf_softext.losses import get_loss

# a loss with two knobs has as many tries as one without
RATES = (5e-4, 2e-3, 8e-3)
MORE_RATES = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 8e-3)
TORCH_BCE = "torch.nn.BCEWithLogitsLoss"
Objective = Callable[[Tensor], Tensor]


class Contender(NamedTuple):
    """A loss, and what is tried of it: every knob with every learning rate."""

    loss: str
    knobs: tuple[dict[str, Any], ...] = ({},)
    rates: tuple[float, ...] = MORE_RATES

    @property
    def tries(self) -> list[tuple[dict[str, Any], float]]:
        """Knobs and learning rate of each try."""
        return [(knobs, rate) for knobs in self.knobs for rate in self.rates]


class Plan(NamedTuple):
    """What is the same for all losses of an experiment; hidden is 0 for a linear head."""

    hidden: int
    epochs: int
    batch: int

    def __str__(self) -> str:
        """As it is kept beside each figure."""
        return f"hidden {self.hidden}, epochs {self.epochs}, batch {self.batch}"


class Result(NamedTuple):
    """Of one measure in one run.

    Attributes:
        score: of the validation split, to choose by.
        counts: (N, K), what the measure needs to know of each row of the test split; it is a
            function of their sums.
        fit: share of the training labels, as they were given, that the model reproduces.
    """

    score: float
    counts: Tensor
    fit: float = math.nan


class Task(NamedTuple):
    """An experiment.

    Attributes:
        settings: by name, what `run` is given.
        baseline: the contender that the others are compared with.
        contenders: by label.
        measures: by name, from sums of counts (..., K) to numbers (...).
        run: setting, contender, knobs, rate, seed, to a result for each measure.
        plan: what all its runs have in common; figures of another plan do not count.
        choices: with how many seeds each try is made; their mean score is chosen by.
    """

    settings: dict[str, Any]
    baseline: str
    contenders: dict[str, Contender]
    measures: dict[str, Callable[[Tensor], Tensor]]
    run: Callable[..., dict[str, Result]]
    plan: str
    choices: int = 1


class Head(nn.Module):
    """A multilayer perceptron with one hidden layer, or none, on unit embeddings."""

    def __init__(self, width: int, hidden: int, classes: int):
        super().__init__()
        self.first = nn.Linear(width, hidden) if hidden else nn.Identity()
        self.last = nn.Linear(hidden or width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features, of rows that are brought to the length of normal ones."""
        features = self.first(x * math.sqrt(x.shape[-1]))
        features = features.relu() if isinstance(self.first, nn.Linear) else features
        return self.last(features), features


def fit(
    modules: Sequence[nn.Module],
    objective: Objective,
    rows: int,
    plan: Plan,
    rate: float,
    seed: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """AdamW without weight decay, its rate falling to 0 in a straight line."""
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    order = torch.Generator().manual_seed(seed)
    step, steps = 0, plan.epochs * math.ceil(rows / plan.batch)
    for _ in range(plan.epochs):
        for chosen in torch.randperm(rows, generator=order).split(plan.batch):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            objective(chosen).backward()
            optimizer.step()
            step += 1
        after()


def build_loss(name: str, knobs: dict[str, Any], labels: Tensor, seed: int) -> nn.Module:
    """A loss by name; that of torch takes `most`, up to which positives outweigh negatives."""
    if name == TORCH_BCE:
        share = labels.mean(0).clamp(min=1 / len(labels))
        weight = ((1 - share) / share).clamp(1, knobs.get("most", 1))
        return nn.BCEWithLogitsLoss(pos_weight=weight)
    loss = get_loss(name, **knobs, **({"seed": seed} if name == "ensloss" else {}))
    if loss.fits:
        loss.fit(labels)
    return loss


def fit_head(
    train: Split,
    loss: nn.Module,
    classes: int,
    plan: Plan,
    rate: float,
    seed: int,
    after: Callable[[Head], None] | None = None,
) -> Head:
    """A head trained with a loss that needs no more than the rows and the head."""
    torch.manual_seed(seed)
    head = Head(train.x.shape[1], plan.hidden, classes)
    needs = getattr(loss, "needs", ())

    def objective(chosen: Tensor) -> Tensor:
        logits, features = head(train.x[chosen])
        offered = {"sample_index": chosen, "features": features}
        return loss(logits, train.y[chosen], **{name: offered[name] for name in needs})

    fit([head], objective, len(train), plan, rate, seed, lambda: after(head) if after else None)
    return head


@torch.no_grad()
def logits_of(head: Head, x: Tensor) -> Tensor:
    """(N, C)."""
    return head(x)[0]


def hits(right: Tensor) -> Tensor:
    """(N, 2) counts of `share`: each row's part of a whole, and a one for the row."""
    return torch.stack([right.float(), torch.ones(len(right))], -1)


def share(sums: Tensor) -> Tensor:
    """The mean over the rows of what `hits` holds."""
    return sums[..., 0] / sums[..., 1]


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit of a row is its label's."""
    return logits.argmax(-1) == labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is the label's."""
    return correct(logits, labels).float().mean().item()
