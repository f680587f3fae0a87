"""The report of a training: one HTML page of curves and scores, no scripts."""

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_softext.training import html_page
from hf_softext.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
# what a Trainer logs about the run, not about the model
_ASIDE = ("step", "epoch", "total_flos", "runtime", "per_second", "num_input_tokens")


def check_report(report: bool) -> None:
    """Raise ImportError where a report is asked for that could not be drawn."""
    if report and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("report=True draws with matplotlib: pip install 'hf-softext[plots]'.")


def write_training_report(
    path: Path, log: list[dict[str, Any]], loss: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write the page.

    Args:
        path: of the file, which appears complete or not at all.
        log: what the Trainer has logged, `trainer.state.log_history`.
        loss: the loss's `config()`.
        facts: what else is worth knowing, by name.
    """
    curves = curves_of(log)
    steps = max((line.get("step", 0) for line in log), default=0)
    title = f"{loss['name']}: {steps:,} steps"
    parts = [html_page.heading("Curves")]
    if curves:
        parts.append(html_page.picture(_draw(curves)))
    else:
        parts.append(html_page.paragraph("Nothing was logged: see logging_steps."))
    last = _last(log)
    if last:
        rows = [[name, f"{value:.6g}"] for name, value in last.items()]
        parts += [
            html_page.heading("Last evaluation"),
            html_page.table(["", f"step {_last_step(log):,}"], rows),
        ]
    parts += [html_page.heading("Loss"), html_page.preformatted(json.dumps(loss, indent=1))]
    parts += [html_page.heading("Settings"), html_page.preformatted(json.dumps(facts, indent=1))]
    parts.append(html_page.paragraph(f"hf_softext {__version__}", note=True))
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(html_page.page(title, parts), encoding="utf-8")
    os.replace(temporary, path)


def curves_of(log: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Everything that was logged over steps, by panel and by name.

    The loss in training and in evaluation share a panel; every other number has one of its own.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in log:
        for name, value in line.items():
            # nan is worth seeing as a gap, and a summary of the whole run is no point of a curve
            aside = name.endswith(_ASIDE) or name.startswith("train_")
            if aside or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            panel = "loss" if name in ("loss", "eval_loss") else name
            lines = found.setdefault(panel, {})
            lines.setdefault(name, []).append((int(line.get("step", 0)), float(value)))
    return found


def _last(log: list[dict[str, Any]]) -> dict[str, float]:
    scores = [line for line in log if any(name.startswith("eval_") for name in line)]
    if not scores:
        return {}
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in scores[-1].items()
        if name.startswith("eval_") and not name.endswith(_ASIDE)
    }


def _last_step(log: list[dict[str, Any]]) -> int:
    return [line["step"] for line in log if any(name.startswith("eval_") for name in line)][-1]


def _draw(curves: dict[str, dict[str, list[tuple[int, float]]]]) -> "Figure":
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / 2)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, (panel, lines) in zip(grid.flat, curves.items(), strict=False):
        for name, points in lines.items():
            marker = "o" if len(points) < 30 else None
            label = "evaluation" if name == "eval_loss" else "training"
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
        if len(lines) > 1:
            axes.legend(frameon=False)
        title = panel.removeprefix("eval_").replace("_", " ")
        # a name with two dollar signs is no formula
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(curves) :]:
        axes.remove()
    return figure
