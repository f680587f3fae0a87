"""One self-contained HTML page: tables, pictures as inline SVG, nothing fetched from anywhere."""

import html
import io
import re
from collections.abc import Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def picture(figure: "Figure") -> str:
    """A matplotlib figure as inline SVG, the same for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hf_softext"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    # the XML prologue and doctype do not belong inside HTML
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
