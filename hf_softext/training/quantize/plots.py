"""The pictures of a quantization's report."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from hf_softext.quantization.baq.size import ModuleSize
from hf_softext.quantization.baq.work_folder import ModuleReport
from hf_softext.training.quantize.points import Point

_BLOCK = re.compile(r"(.*?\.\d+)\.(.+)")
_EXPERT = re.compile(r"(experts)\.\d+")
# as many cells as carry their number, and as many rows as carry their name
_NUMBERED, _NAMED = 240, 64
# methods as they are called on the page
LABELS = {
    "baq": "BAQ",
    "gptq": "GPTQ, one width",
    "rtn": "round to nearest, one width",
}


def split_name(name: str) -> tuple[str, str]:
    """The block of a module, and which of the block's it is; experts are all of one kind."""
    found = _BLOCK.fullmatch(name)
    block, kind = (found[1], found[2]) if found else ("", name)
    return block, _EXPERT.sub(r"\1.*", kind)


def bits_map(modules: Sequence[ModuleSize]) -> Figure:
    """True bits of a weight: a row for each block, a column for each kind of module."""
    blocks, kinds = (list(dict.fromkeys(names)) for names in zip(*_places(modules), strict=True))
    stored, weights = np.zeros((2, len(blocks), len(kinds)))
    for one, (block, kind) in zip(modules, _places(modules), strict=True):
        place = blocks.index(block), kinds.index(kind)
        stored[place] += 8 * one.bytes
        weights[place] += one.weights
    bits = np.divide(stored, weights, out=np.full_like(stored, np.nan), where=weights > 0)
    figure = Figure(figsize=(1.6 + 0.8 * len(kinds), 1.8 + 0.28 * len(blocks)))
    axes = figure.subplots()
    image = axes.imshow(bits, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    _name_rows(axes, blocks)
    if bits.size <= _NUMBERED:
        middle = (np.nanmin(bits) + np.nanmax(bits)) / 2
        for (row, column), value in np.ndenumerate(bits):
            if weights[row, column]:
                color = "white" if value <= middle else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, label="bits of a weight")
    return figure


def column_map(modules: Sequence[ModuleSize]) -> Figure:
    """The widths of the columns of every module, sorted: a row for each module."""
    steps = 200
    shares = (np.arange(steps) + 0.5) / steps
    rows = []
    for one in modules:
        ends = np.cumsum(one.widths) / one.columns
        rows.append(np.searchsorted(ends, shares))
    figure = Figure(figsize=(8, 1.4 + 0.16 * min(len(rows), 4 * _NAMED)))
    axes = figure.subplots()
    norm = BoundaryNorm(np.arange(10) - 0.5, 256)
    image = axes.imshow(
        np.array(rows),
        aspect="auto",
        cmap="viridis",
        norm=norm,
        interpolation="nearest",
        extent=(0, 100, len(rows) - 0.5, -0.5),
    )
    _name_rows(axes, [one.name for one in modules])
    axes.set_xlabel("columns of the module in %, sorted by width")
    figure.colorbar(image, ax=axes, ticks=range(9), label="bits of a column")
    return figure


def loss_plot(modules: Sequence[ModuleReport]) -> Figure:
    """Relative output error of every module with one width, and with the widths it was given."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    places = np.arange(len(modules))
    # a logarithmic axis has no place for a module without any error
    before, after = (
        np.array([value or np.nan for value in values])
        for values in (
            [one.uniform_loss for one in modules],
            [one.loss for one in modules],
        )
    )
    axes.vlines(places, before, after, color="lightgrey", linewidth=1, zorder=1)
    axes.scatter(places, before, s=14, facecolor="white", edgecolor="C0", label="one width")
    axes.scatter(places, after, s=14, color="C1", label="as allocated")
    axes.set_yscale("log")
    starts: dict[str, int] = {}
    for place, one in enumerate(modules):
        starts.setdefault(split_name(one.name)[0], place)
    every = -(-len(starts) // 12)
    shown = list(starts.items())[::every]
    axes.set_xticks([at for _, at in shown], [name for name, _ in shown], rotation=30, ha="right")
    axes.set_ylabel("relative output error")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def quality_plot(points: Sequence[Point], quality: str) -> Figure:
    """Quality over true bits, a line for each method; the original is a level.

    This run's model has a mark of its own. The line of its method goes through it, unless another
    model of that method has the same bits: then this one was made with another allocation.

    Args:
        points: the original, the model of this run, and what it is compared with.
        quality: "perplexity" or "cosine".
    """
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    original, here, *others = points
    axes.axhline(
        original.quality[quality],
        color="grey",
        linestyle=":",
        label=f"original, {original.bits:g} bits",
    )
    if all((point.method, point.asked) != (here.method, here.asked) for point in others):
        others.append(here)
    for (method, label), marker in zip(LABELS.items(), "osD", strict=True):
        line = sorted(
            (point.bits, point.quality[quality]) for point in others if point.method == method
        )
        if line:
            axes.plot(*zip(*line, strict=True), marker=marker, label=label)
    axes.plot(
        here.bits,
        here.quality[quality],
        marker="*",
        markersize=13,
        color="black",
        linestyle="",
        label="this model",
    )
    if quality == "perplexity":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("true bits of a quantized weight")
    axes.set_ylabel(f"held-out {quality}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _places(modules: Sequence[ModuleSize]) -> list[tuple[str, str]]:
    return [split_name(one.name) for one in modules]


def _name_rows(axes: Any, names: list[str]) -> None:
    """Names of rows, some of them where there are many."""
    every = -(-len(names) // _NAMED)
    rows = range(0, len(names), every)
    axes.set_yticks(rows, [names[row] for row in rows], fontsize=8)
