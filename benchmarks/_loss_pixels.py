"""Inputs that an adversary may change: small images, a small convolutional network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _loss_data as data
import torch
import torch.nn.functional as F
from _loss_fit import Contender, Plan, Result, Task, build_loss, fit, hits, share
from torch import Tensor, nn

EPSILON = 0.1
PLAN, TRAIN_STEPS = Plan(0, 6, 128), 4
SIGMA = 0.3
NOISY, PGD, TRADES = "ce, Gaussian noise", "ce, adversarial training", "TRADES"
CLEAN, ATTACKED = "clean", "PGD-10"
GAUSSIAN = f"Gaussian noise of {SIGMA}"
STRONGER = "PGD-10 and PGD-20 on the margin"
WEAKEST = "PGD-10, the weakest digit"
Ascend = Callable[[Tensor], Tensor]


def network() -> nn.Module:
    """Two strided convolutions and a linear layer: some 6,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def attack(
    model: nn.Module, x: Tensor, ascend: Ascend, steps: int, random: torch.Generator
) -> Tensor:
    """Projected gradient ascent in the pixels: a random start, then steps of the sign.

    Args:
        model: from pixels to logits.
        x: (N, 1, 28, 28), from 0 to 1.
        ascend: what to make large, of the logits; a sum over rows.
        steps: how many; one is 2.5 EPSILON / steps.
        random: of the start.
    """
    low, high = (x - EPSILON).clamp(min=0), (x + EPSILON).clamp(max=1)
    moved = low + (high - low) * torch.rand(x.shape, generator=random)
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(ascend(model(moved)), moved)
        moved = moved.detach() + 2.5 * EPSILON / steps * slope.sign()
        moved = torch.minimum(torch.maximum(moved, low), high)
    return moved


def cross_entropy(labels: Tensor) -> Ascend:
    """What an ordinary attack makes large."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


def margin(labels: Tensor) -> Ascend:
    """The best other logit less the label's: no saturation can hide its slope."""

    def ascend(logits: Tensor) -> Tensor:
        others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
        return (others - logits.gather(1, labels[:, None])[:, 0]).sum()

    return ascend


def objective_of(
    contender: Contender, knobs: dict[str, Any], model: nn.Module, random: torch.Generator
) -> Callable[[Tensor, Tensor], Tensor]:
    """What training minimises, of pixels and labels."""
    if contender.loss in (NOISY, PGD, TRADES):
        return lambda x, y: _peer(contender.loss, knobs, model, x, y, random)
    loss: Any = build_loss(contender.loss, knobs, torch.zeros(0), 0)
    if not loss.needs:
        return lambda x, y: loss(model(x), y)

    def objective(x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        clean = logits.detach()
        moved = attack(model, x, lambda z: loss.attack_objective(clean, y, z), TRAIN_STEPS, random)
        return loss(logits, y, perturbed_logits=model(moved))

    return objective


def _peer(
    name: str,
    knobs: dict[str, Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    random: torch.Generator,
) -> Tensor:
    if name == NOISY:
        noise = knobs["sigma"] * torch.randn(x.shape, generator=random)
        return F.cross_entropy(model((x + noise).clamp(0, 1)), y)
    if name == PGD:
        return F.cross_entropy(model(attack(model, x, cross_entropy(y), TRAIN_STEPS, random)), y)
    logits = model(x)
    log_p = logits.log_softmax(-1)

    def divergence(given: Tensor, other: Tensor) -> Tensor:
        return F.kl_div(other.log_softmax(-1), given, reduction="sum", log_target=True)

    moved = attack(model, x, lambda z: divergence(log_p.detach(), z), TRAIN_STEPS, random)
    price = divergence(log_p, model(moved)) / len(x)
    return F.cross_entropy(logits, y) + knobs["beta"] * price


def survives(
    model: nn.Module, split: data.Split, ascend: Callable[[Tensor], Ascend], steps: int, seed: int
) -> Tensor:
    """(N,): whether a row is still right after an attack."""
    random, found = torch.Generator().manual_seed(seed), []
    for rows in torch.arange(len(split)).split(250):
        x, y = split.x[rows], split.y[rows]
        with torch.no_grad():
            right = model(x).argmax(-1) == y
        moved = attack(model, x, ascend(y), steps, random)
        with torch.no_grad():
            found.append(right & (model(moved).argmax(-1) == y))
    return torch.cat(found)


def by_class(right: Tensor, labels: Tensor) -> Tensor:
    """(N, 20) counts of `weakest`: for each digit whether it is right, and whether it is there."""
    there = F.one_hot(labels, 10).float()
    return torch.cat([there * right.float()[:, None], there], -1)


def weakest(sums: Tensor) -> Tensor:
    """The accuracy of the digit that has the lowest."""
    right, rows = sums.unflatten(-1, (2, 10)).unbind(-2)
    return (right / rows.clamp(min=1)).amin(-1)


def run_adversarial(
    folder: Path, contender: Contender, knobs: dict[str, Any], rate: float, seed: int
) -> dict[str, Result]:
    """All measures are chosen by PGD-10 on the validation split."""
    train, val, test = (data.mnist(folder)[split] for split in data.SPLITS)
    torch.manual_seed(seed)
    model, random = network(), torch.Generator().manual_seed(seed)
    objective = objective_of(contender, knobs, model, random)
    fit(
        [model],
        lambda chosen: objective(train.x[chosen], train.y[chosen]),
        len(train),
        PLAN,
        rate,
        seed,
    )
    score = survives(model, val, cross_entropy, 10, seed).float().mean().item()
    noise = SIGMA * torch.randn(test.x.shape, generator=torch.Generator().manual_seed(seed + 2))
    with torch.no_grad():
        clean, noisy = (
            model(x).argmax(-1) == test.y for x in (test.x, (test.x + noise).clamp(0, 1))
        )
    attacked = survives(model, test, cross_entropy, 10, seed)
    both = attacked & survives(model, test, margin, 20, seed + 1)
    found = {CLEAN: hits(clean), GAUSSIAN: hits(noisy), ATTACKED: hits(attacked)}
    found[STRONGER] = hits(both)
    found[WEAKEST] = by_class(attacked, test.y)
    return {name: Result(score, counts) for name, counts in found.items()}


RATES = (2e-3, 8e-3)
MORE_RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def adversarial(folder: Path) -> Task:
    """MNIST's test images in a folder."""
    return Task(
        settings={"MNIST": folder},
        baseline=PGD,
        contenders={
            PGD: Contender(PGD, rates=MORE_RATES),
            "ce": Contender("ce", rates=MORE_RATES),
            NOISY: Contender(NOISY, ({"sigma": 0.1}, {"sigma": 0.3}), RATES),
            TRADES: Contender(TRADES, ({"beta": 1.0}, {"beta": 6.0}), RATES),
            "adv_comp_sum": Contender("adv_comp_sum", ({"nu": 0.3}, {"nu": 1.0}), RATES),
            "dr_irat": Contender("dr_irat", ({"r": 1.0}, {"r": 5.0}), RATES),
        },
        measures={
            CLEAN: share,
            GAUSSIAN: share,
            ATTACKED: share,
            STRONGER: share,
            WEAKEST: weakest,
        },
        run=run_adversarial,
        plan=f"{PLAN}, epsilon {EPSILON}, attack steps {TRAIN_STEPS}",
    )
