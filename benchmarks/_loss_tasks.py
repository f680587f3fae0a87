"""One class a row: noisy labels, and bags of which only the shares are known."""

from typing import Any

import _loss_data as data
import torch
import torch.nn.functional as F
from _loss_data import Split
from _loss_fit import (
    RATES,
    Contender,
    Head,
    Plan,
    Result,
    Task,
    accuracy,
    build_loss,
    correct,
    fit,
    fit_head,
    hits,
    logits_of,
    share,
)
from torch import Tensor

NOISE_PLAN = Plan(256, 10, 128)
LAST, BEST = "accuracy after the last epoch", "accuracy of the best epoch"


def flip(labels: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """Labels of which a share is replaced by another class, each as likely."""
    random = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=random) < rate
    other = torch.randint(1, classes, labels.shape, generator=random)
    return torch.where(wrong, (labels + other) % classes, labels)


def judge(head: Head, train: Split, val: Split, test: Split) -> Result:
    """Accuracy on all three."""
    right = correct(logits_of(head, test.x), test.y)
    on_val, on_train = (accuracy(logits_of(head, split.x), split.y) for split in (val, train))
    return Result(on_val, hits(right), on_train)


def run_noise(
    noise: float, contender: Contender, knobs: dict[str, Any], rate: float, seed: int
) -> dict[str, Result]:
    """Labels of training and validation are noisy alike, those of the test are clean."""
    parts = data.clinc()
    classes = int(parts["test"].y.max()) + 1
    train, val, test = (parts[split] for split in data.SPLITS)
    train = Split(train.x, flip(train.y, noise, classes, seed))
    noisy = flip(val.y, noise, classes, seed + 1000)
    best = Result(-1.0, torch.zeros(0, 2))

    def look(head: Head) -> None:
        nonlocal best
        score = accuracy(logits_of(head, val.x), noisy)
        if score > best.score:
            best = Result(score, hits(correct(logits_of(head, test.x), test.y)))

    loss = build_loss(contender.loss, knobs, train.y, seed)
    head = fit_head(train, loss, classes, NOISE_PLAN, rate, seed, look)
    return {LAST: judge(head, train, Split(val.x, noisy), test), BEST: best}


MULTICLASS = {
    "ce": Contender("ce"),
    "ce, label smoothing": Contender(
        "ce", ({"label_smoothing": 0.1}, {"label_smoothing": 0.3}), RATES
    ),
    # the same family: comp_sum is gce with q = tau - 1
    "gce": Contender("gce", ({"q": 0.7}, {"q": 0.9}), RATES),
    "comp_sum": Contender("comp_sum", ({"tau": 1.5}, {"tau": 1.3}), RATES),
    "ldr_kl": Contender(
        "ldr_kl",
        (
            {"lam": 1.0, "margin": 2.0, "normalize": "none"},
            {"lam": 10.0, "margin": 0.1, "normalize": "softplus"},
        ),
        RATES,
    ),
    # it divides scores by their size, and its validation still rises at the others' highest rate
    "aldr_kl": Contender("aldr_kl", ({"lam": 10.0}, {"lam": 1.0}), (2e-3, 8e-3, 3.2e-2)),
    "crammer_singer": Contender("crammer_singer"),
}
NOISE = Task(
    settings={"20 % noise": 0.2, "45 % noise": 0.45},
    baseline="ce",
    contenders=MULTICLASS,
    measures={LAST: share, BEST: share},
    run=run_noise,
    plan=str(NOISE_PLAN),
)
# one rate for all, at which cross-entropy fits most wrong labels, and nothing chosen
UNTUNED_RATE = 8e-3
UNTUNED = NOISE._replace(
    settings={"45 % noise": 0.45},
    contenders={
        label: c._replace(knobs=c.knobs[:1], rates=(UNTUNED_RATE,))
        for label, c in MULTICLASS.items()
    },
)


BAG_SIZES, BAG_PLAN = (2, 8, 32), Plan(0, 10, 512)
SHARES = "aggregate, instance: ce with the shares of the bag"
OWN = "ce, every row's own label"


def run_bags(
    size: int, contender: Contender, knobs: dict[str, Any], rate: float, seed: int
) -> dict[str, Result]:
    """Bags drawn at random, of which the shares of the classes are known; a linear head."""
    parts = data.clinc()
    train, val, test = (parts[split] for split in data.SPLITS)
    random = torch.Generator().manual_seed(seed)
    whole = len(train) // size * size
    bags = torch.randperm(len(train), generator=random)[:whole].reshape(-1, size)
    classes = int(train.y.max()) + 1
    shares = F.one_hot(train.y[bags], classes).float().mean(1)
    loss = build_loss(contender.loss, knobs, train.y, seed)
    torch.manual_seed(seed)
    head = Head(train.x.shape[1], BAG_PLAN.hidden, classes)

    def objective(chosen: Tensor) -> Tensor:
        rows = bags[chosen].flatten()
        logits, _ = head(train.x[rows])
        if contender.loss == "ce":
            return loss(logits, train.y[rows])
        bag = chosen.repeat_interleave(size)
        return loss(logits, shares[bag], bag_id=bag)

    # as many rows a step for bags of every size
    plan = BAG_PLAN._replace(batch=max(BAG_PLAN.batch // size, 1))
    fit([head], objective, len(bags), plan, rate, seed)
    return {"accuracy": judge(head, train, val, test)}


BAGS = Task(
    settings={f"bags of {size}": size for size in BAG_SIZES},
    baseline=SHARES,
    contenders={
        SHARES: Contender("aggregate", ({"level": "instance", "base": "ce"},)),
        "aggregate, bag": Contender("aggregate", ({"level": "bag", "base": "ce"},)),
        "aggregate, mix": Contender(
            "aggregate",
            (
                {"level": "mix", "rho": 0.1, "base": "ce"},
                {"level": "mix", "rho": 0.5, "base": "ce"},
            ),
            RATES,
        ),
        OWN: Contender("ce"),
    },
    measures={"accuracy": share},
    run=run_bags,
    plan=str(BAG_PLAN),
)
