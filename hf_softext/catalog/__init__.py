"""The catalogue: one row for every published method that works here. Pure data, imports nothing
heavy."""

import difflib

from hf_softext.catalog import core, losses
from hf_softext.catalog.row import Method, Paper

__all__ = ["CATALOG", "Method", "Paper", "did_you_mean", "find", "methods"]

CATALOG: tuple[Method, ...] = core.ROWS + losses.ROWS


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: the nearest known word if there is one, then all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def methods(family: str | None = None) -> list[Method]:
    """The rows of one family, or all of them."""
    return [row for row in CATALOG if family in (None, row.family)]


def find(name: str, family: str | None = None) -> Method:
    """The row called `name`.

    Raises:
        ValueError: no such row; the message suggests the nearest one.
    """
    rows = {row.name: row for row in methods(family)}
    if not isinstance(name, str) or name not in rows:
        kind = "method" if family is None else f"{family} method"
        raise ValueError(f"Unknown {kind} {name!r}.{did_you_mean(str(name), list(rows))}")
    return rows[name]
