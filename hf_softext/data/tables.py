"""Tables, from files and datasets, as they are."""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

_READERS = {
    ".jsonl": Dataset.from_json,
    ".json": Dataset.from_json,
    ".csv": Dataset.from_csv,
    ".tsv": lambda path: Dataset.from_csv(path, sep="\t"),
    ".parquet": Dataset.from_parquet,
}


def read_table(data: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """Read a table.

    Args:
        data: a .jsonl, .json, .csv, .tsv or .parquet file, or the name of a dataset.
        config: the configuration of a dataset, where it has several.
        split: the split of a dataset.

    Raises:
        FileNotFoundError: neither a file nor a dataset that can be loaded.
        ValueError: an unknown kind of file, one that cannot be read, or no row.
    """
    path = Path(data)
    if path.is_file() or path.suffix in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f"data={data!r} is not a file.")
        if path.suffix not in _READERS:
            raise ValueError(f"data={data!r}: use one of {', '.join(_READERS)}.")
        try:
            rows: Any = _READERS[path.suffix](str(path))
        except (OSError, ValueError, DatasetsError, StopIteration) as error:
            # the outer one may say nothing
            why = str(error.__cause__ or error) or "it is empty"
            raise ValueError(f"data={data!r} could not be read: {why}") from error
    else:
        try:
            rows = load_dataset(data, config, split=split)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"data={data!r} is not a file here, and could not be loaded as a dataset: {error}"
            ) from error
    if not len(rows):
        raise ValueError(f"data={data!r} has no rows.")
    return rows


def texts_of(rows: Dataset, argument: str, column: str) -> list[str]:
    """A column of texts; an empty cell is an empty text.

    Raises:
        ValueError: no such column; the argument that names it is in the message.
    """
    check_column(rows, argument, column)
    return ["" if one is None else str(one) for one in rows[column]]


def check_column(rows: Dataset, argument: str, column: str) -> None:
    """Raise ValueError where the column that an argument names is not there."""
    if column not in rows.column_names:
        raise ValueError(
            f"{argument}={column!r} is not a column of the data, which has "
            f"{', '.join(rows.column_names)}."
        )
