"""One self-contained HTML page: tables, pictures as inline SVG, nothing fetched from anywhere."""

import html
import io
import re
from collections.abc import Set

from matplotlib.figure import Figure

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
color: #1b1b1b }} h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }} td.best {{ font-weight: 700 }}
pre {{ background: #f6f6f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }}
svg {{ max-width: 100%; height: auto }} .note {{ color: #555; font-size: .9rem }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def page(title: str, parts: list[str]) -> str:
    """The whole document."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, note: bool = False) -> str:
    """Plain text; a note is smaller."""
    return f"<p{' class=note' if note else ''}>{html.escape(text)}</p>"


def preformatted(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def table(
    columns: list[str], rows: list[list[str]], best: Set[tuple[int, int]] = frozenset()
) -> str:
    """A table whose cells at (row, column) in `best` are bold."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=best' if (i, j) in best else ''}>{html.escape(cell)}</td>"
            for j, cell in enumerate(row)
        )
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(figure: Figure) -> str:
    """A matplotlib figure as inline SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    # the XML prologue and doctype do not belong inside HTML
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def length_plot(losses: dict[str, dict[int, float]], trained_at: int) -> Figure:
    """Loss over test length, one line a variant."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for (label, values), marker in zip(losses.items(), "osD^v", strict=False):
        axes.plot(list(values), list(values.values()), marker=marker, label=label)
    axes.axvline(trained_at, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    lengths = list(next(iter(losses.values())))
    axes.set_xticks(lengths, [f"{length}\n{length // trained_at}x" for length in lengths])
    axes.set_xlabel("test length in bytes, and as a multiple of the training length")
    axes.set_ylabel("loss, nats per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def adoption_plot(cosines: dict[str, tuple[float, float]]) -> Figure:
    """Cosine to the original, after the bare swap and after adoption."""
    figure = Figure(figsize=(8, 0.7 * len(cosines) + 1.2))
    axes = figure.subplots()
    for row, (before, after) in enumerate(cosines.values()):
        axes.plot([before, after], [row, row], color="grey", linewidth=1, zorder=1)
        axes.scatter(
            [before], [row], color="tab:red", label="swapped" if row == 0 else None, zorder=2
        )
        axes.scatter(
            [after], [row], color="tab:green", label="adopted" if row == 0 else None, zorder=2
        )
    axes.axvline(1.0, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(cosines)), list(cosines))
    axes.set_ylim(len(cosines) - 0.5, -0.5)
    axes.set_xlabel("cosine of the sentence embeddings to the original's (CLINC150 test queries)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return figure
