"""The file of results: a line on what was measured, then a line for each class.

It grows by a line at a time, so that a run that was killed continues where it was.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hf_softext.coverage.row import Row


@dataclass(frozen=True)
class Header:
    """What was measured, with what.

    Attributes:
        attention: the method.
        transformers: version.
        torch: version.
        hf_softext: version.
        date: when it was begun, as 2026-01-31.
        broken: model folders that could not be imported, with the reason.
    """

    attention: str
    transformers: str
    torch: str
    hf_softext: str
    date: str
    broken: dict[str, str]

    def same_run(self, other: "Header") -> bool:
        """Whether results under both may stand in one file; the date may differ."""
        mine, theirs = asdict(self), asdict(other)
        return {**mine, "date": ""} == {**theirs, "date": ""}


def read_results(path: Path) -> tuple[Header, list[Row]]:
    """The header and the rows of a file, without a last line that was cut off.

    Raises:
        ValueError: not such a file.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        header = Header(**json.loads(lines[0]))
        # what follows the last line break was being written when the run ended
        rows = [_row(json.loads(line)) for line in lines[1:-1]]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a file of coverage results: {error}") from None
    return header, rows


def write_results(path: Path, header: Header, rows: list[Row]) -> None:
    """Write a whole file, rows sorted by name."""
    lines = [json.dumps(asdict(header))]
    lines += [_line(row) for row in sorted(rows, key=lambda row: row.name)]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def append_result(path: Path, row: Row) -> None:
    """Add a row to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row) + "\n")


def _line(row: Row) -> str:
    """A row as JSON, without what has its default."""
    blank = asdict(Row("", ""))
    return json.dumps({key: value for key, value in asdict(row).items() if value != blank[key]})


def _row(values: dict[str, Any]) -> Row:
    known = {field.name for field in fields(Row)}
    if not set(values) <= known:
        raise ValueError(f"unknown fields {sorted(set(values) - known)}")
    return Row(**{**values, "bypassed": tuple(values.get("bypassed", ()))})
