"""The pictures of an SDM head's report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from hf_softext.training.verifier.judged import Judged

# as many classes as have a line of their own
_NAMED = 8
_ADMITTED, _RIGHT, _WRONG = "#2a7f62", "#b9c0c6", "#c8503c"


def region_plot(
    candidates: np.ndarray,
    thresholds: np.ndarray,
    names: Sequence[str],
    similarity: np.ndarray,
    alpha: float,
    least: float,
) -> Figure:
    """The search for the region: threshold of every class over candidates, and what is left.

    Args:
        candidates: (T,), for the least similarity, ascending.
        thresholds: (T, C).
        names: of the classes.
        similarity: (N,), rescaled, of the calibration rows.
        alpha: the accuracy asked for.
        least: the similarity that was chosen; infinity where none was.
    """
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    hardest = np.argsort(thresholds.max(0) if len(thresholds) else np.zeros(len(names)))
    for place, label in enumerate(hardest):
        named = place < _NAMED
        upper.step(
            candidates,
            thresholds[:, label],
            where="pre",
            color=f"C{place}" if named else "lightgrey",
            linewidth=1.4 if named else 0.8,
            zorder=2 if named else 1,
            label=names[label] if named else None,
        )
    upper.axhline(alpha, color="black", linestyle=":", linewidth=1)
    upper.annotate(
        f"alpha {alpha:g}",
        (0, alpha),
        (3, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
    )
    shares = [(similarity >= one).mean() for one in candidates]
    lower.step(candidates, shares, where="pre", color="black", linewidth=1)
    for axes in (upper, lower):
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        if np.isfinite(least):
            axes.axvline(least, color=_ADMITTED, linewidth=1.5)
    if np.isfinite(least):
        lower.annotate(
            f"chosen: {least:.4g}",
            (least, 1),
            (-4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            ha="right",
            va="top",
            color=_ADMITTED,
        )
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel("threshold of a class")
    lower.set_ylim(-0.05, 1.05)
    lower.set_ylabel("rows left")
    lower.set_xlabel("least rescaled similarity")
    title = None if len(names) <= _NAMED else f"hardest {_NAMED} of {len(names)}"
    # of one decade too there is more than one number, and none overlap
    lower.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    lower.xaxis.set_major_formatter("{x:g}")
    lower.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(
        loc="outside right upper", frameon=False, fontsize=8, title=title, title_fontsize=8
    )
    return figure


def risk_curve(right: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk: of the rows with the highest scores, how many they are and how many wrong.

    Args:
        right: (N,), bool.
        score: (N,); rows with equal scores come together.

    Returns:
        Both in [0, 1], a point for each different score.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.nonzero(np.append(np.diff(score[order]) != 0, True))[0]
    wrong = np.cumsum(~right[order])
    return (ends + 1) / len(right), wrong[ends] / (ends + 1)


def risk_plot(judged: Judged, alpha: float) -> Figure:
    """Share of wrong answers over the share of rows that are answered."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: Mapping[str, np.ndarray | None] = {
        "output of the head": judged.score,
        "softmax of the same logits": judged.plain,
    }
    for color, (name, score) in zip(("C0", "grey"), lines.items(), strict=True):
        if score is not None:
            axes.plot(*risk_curve(judged.right, score), color=color, linewidth=1.4, label=name)
    points = {"admitted": judged.admit, "admitted by the lower bound": judged.admit_lower}
    for marker, (name, admit) in zip("os", points.items(), strict=True):
        if admit is not None and admit.any():
            share, wrong = admit.mean(), (~judged.right[admit]).mean()
            axes.plot(share, wrong, marker, color=_ADMITTED, markersize=8, label=name, zorder=3)
    axes.axhline(1 - alpha, color="black", linestyle=":", linewidth=1, label="1 - alpha")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=-0.005)
    axes.set_xlabel("coverage: share of the rows that is answered, most certain first")
    axes.set_ylabel("risk: share of them that is wrong")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def evidence_plot(judged: Judged) -> Figure:
    """Similarity and distance of the rows that are admitted and of those that are not."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = {
        "admitted, right": (judged.admit & judged.right, _ADMITTED),
        "admitted, wrong": (judged.admit & ~judged.right, "black"),
        "refused, right": (~judged.admit & judged.right, _RIGHT),
        "refused, wrong": (~judged.admit & ~judged.right, _WRONG),
    }
    kinds = {name: kind for name, kind in kinds.items() if kind[0].any()}
    # no similarity has a bar of its own; the others are in powers of two
    top = max(float(judged.similarity.max(initial=0)), 1.0)
    steps = int(np.floor(np.log2(top))) + 1
    bins = np.where(judged.similarity < 1, 0, np.floor(np.log2(judged.similarity.clip(1))) + 1)
    for axes, values, edges in (
        (left, bins, np.arange(steps + 2) - 0.5),
        (right, judged.distance, np.linspace(0, 1, 21)),
    ):
        axes.hist(
            [values[mask] for mask, _ in kinds.values()],
            edges,
            stacked=True,
            color=[color for _, color in kinds.values()],
            label=list(kinds),
        )
        axes.set_ylabel("rows")
        axes.spines[["top", "right"]].set_visible(False)
    every = -(-(steps + 1) // 8)
    places = range(0, steps + 1, every)
    names = ["0" if place == 0 else f"{2 ** (place - 1)}" for place in places]
    left.set_xticks(places, [f"{name}+" if name not in "01" else name for name in names])
    left.set_xlabel("similarity: nearest training rows that speak for the prediction")
    right.set_xlabel("distance: 0 farther than all, 1 as near as any")
    left.legend(frameon=False, fontsize=8)
    return figure
