"""Several labels a row, and one that is rare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _loss_data as data
import torch
from _loss_data import Split
from _loss_fit import (
    RATES,
    TORCH_BCE,
    Contender,
    Plan,
    Result,
    Task,
    build_loss,
    fit_head,
    hits,
    logits_of,
    share,
)
from torch import Tensor

BCE, BCE_WEIGHTED = "BCE of torch", "BCE of torch, positives weighted"
MULTILABEL_PLAN, IMBALANCE_PLAN = Plan(256, 8, 512), Plan(128, 10, 1024)


def macro_f1(sums: Tensor) -> Tensor:
    """The mean over labels of F1, from true positives and errors of each."""
    return _f1(*sums.unflatten(-1, (3, -1)).unbind(-2)).mean(-1)


def micro_f1(sums: Tensor) -> Tensor:
    """F1 of the sums over labels."""
    return _f1(*sums.unflatten(-1, (3, -1)).sum(-1).unbind(-1))


def f1(sums: Tensor) -> Tensor:
    """F1 of `confusion`."""
    return _f1(*sums[..., :3].unbind(-1))


def balanced_accuracy(sums: Tensor) -> Tensor:
    """The mean of the two classes' recall, of `confusion`."""
    positives, negatives = _rates(sums)
    return (positives + negatives) / 2


def _f1(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)


def _rates(sums: Tensor) -> tuple[Tensor, Tensor]:
    tp, fp, fn, tn = sums.unbind(-1)
    return tp / (tp + fn).clamp(min=1), tn / (tn + fp).clamp(min=1)


def errors(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """(N, 3 C): true positives, false positives, false negatives of each label."""
    said = (logits > threshold).float()
    return torch.cat([said * labels, said * (1 - labels), (1 - said) * labels], -1)


def confusion(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """(N, 4): `errors` of one label, and true negatives."""
    found = errors(logits, labels, threshold)
    return torch.cat([found, 1 - found.sum(-1, keepdim=True)], -1)


def threshold_for(
    measure: Callable[[Tensor], Tensor],
    count: Callable[[Tensor, Tensor, float], Tensor],
    logits: Tensor,
    labels: Tensor,
) -> float:
    """The best of 200 thresholds between logits, at quantiles that lie closer the rarer a yes is.

    Halfway between two logits, and of several that are best the one in the middle: at an end of
    the gap between the classes of the validation split it would be wrong on the next rows.
    """
    tail = torch.logspace(-3.5, 0, 200, dtype=torch.float64)
    places = logits.flatten().sort().values
    places = torch.cat([places[:1], (places[:-1] + places[1:]) / 2])
    at = places[((1 - tail) * (len(places) - 1)).long()].unique()
    values = torch.stack([measure(count(logits, labels, t).sum(0)) for t in at.tolist()])
    best = (values == values.max()).nonzero()[:, 0]
    return at[best[len(best) // 2]].item()


def run_multilabel(
    folder: Path, contender: Contender, knobs: dict[str, Any], rate: float, seed: int
) -> dict[str, Result]:
    """One threshold for all labels, chosen by the measure on the validation split."""
    train, val, test = (data.goemotions(folder)[split] for split in data.SPLITS)
    loss = build_loss(contender.loss, knobs, train.y, seed)
    head = fit_head(train, loss, train.y.shape[1], MULTILABEL_PLAN, rate, seed)
    on_val, on_test = logits_of(head, val.x), logits_of(head, test.x)
    found = {}
    for name, measure in (("macro F1", macro_f1), ("micro F1", micro_f1)):
        threshold = threshold_for(measure, errors, on_val, val.y)
        score = measure(errors(on_val, val.y, threshold).sum(0)).item()
        found[name] = Result(score, errors(on_test, test.y, threshold))
    for k in (1, 3):
        mine, theirs = (
            y.gather(1, logits.topk(k).indices).mean(-1)
            for logits, y in ((on_val, val.y), (on_test, test.y))
        )
        found[f"precision at {k}"] = Result(mine.mean().item(), hits(theirs))
    return found


def multilabel(folder: Path) -> Task:
    """GoEmotions in a folder."""
    return Task(
        settings={"GoEmotions": folder},
        baseline=BCE,
        contenders={
            BCE: Contender(TORCH_BCE),
            BCE_WEIGHTED: Contender(TORCH_BCE, ({"most": 3}, {"most": 10}), RATES),
            "decoupled_softmax": Contender("decoupled_softmax"),
            "soft_topk": Contender("soft_topk", ({"k": 2}, {"k": 5}), RATES),
            "hybrid_multilabel": Contender(
                "hybrid_multilabel", ({"max_weight": 10.0}, {"max_weight": 3.0}), RATES
            ),
            "l2_svm": Contender("l2_svm"),
        },
        measures={
            "macro F1": macro_f1,
            "micro F1": micro_f1,
            "precision at 1": share,
            "precision at 3": share,
        },
        run=run_multilabel,
        plan=str(MULTILABEL_PLAN),
    )


SCORES = {"F1": f1, "balanced accuracy": balanced_accuracy}
URGENT = ("account_blocked", "report_fraud", "report_lost_card")
FEAR = 14


def rare(source: Path | None, columns: tuple[int, ...]) -> tuple[Split, ...]:
    """Splits with labels (N, 1): whether a row has one of these classes."""
    parts = data.clinc() if source is None else data.goemotions(source)
    splits = []
    for name in data.SPLITS:
        y = parts[name].y
        yes = y[:, columns].amax(-1) if y.dim() == 2 else torch.isin(y, torch.tensor(columns))
        splits.append(Split(parts[name].x, yes.float()[:, None]))
    return tuple(splits)


def run_imbalance(
    setting: tuple, contender: Contender, knobs: dict[str, Any], rate: float, seed: int
) -> dict[str, Result]:
    """Every measure at the logit 0 and at the threshold that is best on the validation split."""
    train, val, test = rare(*setting)
    loss = build_loss(contender.loss, knobs, train.y, seed)
    head = fit_head(train, loss, 1, IMBALANCE_PLAN, rate, seed)
    on_val, on_test = logits_of(head, val.x), logits_of(head, test.x)
    found = {}
    for name, measure in SCORES.items():
        tuned = threshold_for(measure, confusion, on_val, val.y)
        for how, threshold in (("at 0", 0.0), ("tuned", tuned)):
            score = measure(confusion(on_val, val.y, threshold).sum(0)).item()
            found[f"{name}, {how}"] = Result(score, confusion(on_test, test.y, threshold))
    return found


def imbalance(folder: Path | None) -> Task:
    """Three urgent intents of CLINC150, and rare emotions where GoEmotions is there."""
    settings: dict[str, tuple[Path | None, tuple[int, ...]]] = {
        "CLINC150, 3 of 150 intents": (None, tuple(map(data.intents().index, URGENT)))
    }
    if folder:
        settings["GoEmotions, fear"] = (folder, (FEAR,))
    steep = ({"amplify": 73.0}, {"amplify": 10.0})
    metrics = {"f_beta": "anyloss, f_beta", "balanced_accuracy": "anyloss, balanced accuracy"}
    return Task(
        settings=settings,
        baseline=BCE,
        contenders={
            BCE: Contender(TORCH_BCE),
            BCE_WEIGHTED: Contender(TORCH_BCE, ({"most": 1e4}, {"most": 7}), RATES),
            **{
                label: Contender(
                    "anyloss", tuple({"metric": metric, **knob} for knob in steep), RATES
                )
                for metric, label in metrics.items()
            },
            "ensloss": Contender("ensloss"),
        },
        measures={
            f"{name}, {how}": measure
            for name, measure in SCORES.items()
            for how in ("at 0", "tuned")
        },
        run=run_imbalance,
        plan=str(IMBALANCE_PLAN),
        # the validation split has only some 60 positives
        choices=3,
    )
