"""The picture of `loss_evidence.py`: every difference to a baseline with its interval."""

import math
from pathlib import Path

from loss_evidence_report import BETTER, WORSE, Table
from matplotlib import rc_context
from matplotlib.figure import Figure

COLORS = {BETTER: "tab:green", WORSE: "tab:red"}
# in points; the axis is linear within 2 and logarithmic beyond
TICKS = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)


def save_plot(tables: list[tuple[str, str, Table]], path: Path) -> None:
    """One panel for each table: losses downwards, a mark for each measure.

    Args:
        tables: experiment, setting, figures.
        path: of the SVG.
    """
    columns = 2
    rows = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(12, 0.6 + 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (experiment, setting, table) in zip(panels, tables, strict=False):
        losses = [loss for loss in table.losses[1:] if loss not in table.bounds]
        step = 0.8 / max(len(table.measures), 1)
        for loss, measure, (gap, half, _, word) in table.judged():
            place = losses.index(loss) - 0.4 + step * (table.measures.index(measure) + 0.5)
            width = 0 if math.isnan(half) else half
            axes.errorbar(
                100 * gap,
                place,
                xerr=100 * width,
                fmt="osD^vP"[table.measures.index(measure) % 6],
                markersize=3.5,
                linewidth=1,
                color=COLORS.get(word, "tab:gray"),
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=2)
        axes.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS], fontsize=7)
        axes.minorticks_off()
        axes.set_xlim(-100, 100)
        axes.set_ylim(max(len(losses), 1) - 0.5, -0.5)
        axes.set_yticks(range(len(losses)), losses, fontsize=8)
        axes.set_title(f"{experiment}, {setting}\nless {table.losses[0]}", fontsize=8)
        marks = zip("osD^vP", table.measures, strict=False)
        words = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "P": "✚"}
        axes.set_xlabel("; ".join(f"{words[mark]} {name}" for mark, name in marks), fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tables) :]:
        axes.axis("off")
    # the same figures give the same file
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
