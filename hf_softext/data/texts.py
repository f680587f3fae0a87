"""Texts to train on, from files, folders and datasets."""

from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset

_READERS = {
    ".txt": Dataset.from_text,
    ".jsonl": Dataset.from_json,
    ".json": Dataset.from_json,
    ".csv": Dataset.from_csv,
    ".parquet": Dataset.from_parquet,
}


def read_texts(path: Path, column: str, whole: bool = False) -> Dataset:
    """Read the examples of a text file or table; blank ones are left out.

    Args:
        path: .txt, .jsonl, .json, .csv or .parquet.
        column: the column of a table that holds the text.
        whole: whether a .txt file is one example; else every line is.

    Returns:
        A dataset with the one column "text".

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown kind of file, a missing column, or no text in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data={str(path)!r} is not a file.")
    if path.suffix not in _READERS:
        raise ValueError(f"data={str(path)!r}: use one of {', '.join(_READERS)}.")
    if path.suffix == ".txt":
        column = "text"
        rows = Dataset.from_text(str(path), sample_by="document" if whole else "line")
    else:
        rows = _READERS[path.suffix](str(path))
    return _only_text(rows, column, path.name, str(path))


def read_corpus(data: str, column: str, config: str | None = None, whole: bool = True) -> Dataset:
    """Read running text: a file, every .txt and .jsonl file below a folder, or a dataset.

    Args:
        data: a file or a folder (a row of a table is a document), or the name of a dataset for
            `datasets.load_dataset`, whose split "train" is read.
        column: the column of a table or dataset that holds the text.
        config: the configuration of a dataset, where it has several.
        whole: whether a .txt file is one document; else every line is.

    Returns:
        A dataset with the one column "text", a document a row; files in the order of their names.

    Raises:
        FileNotFoundError: neither a file nor a folder nor a dataset that can be loaded.
        ValueError: no text, or no such column.
    """
    path = Path(data)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl"))
        if not files:
            raise ValueError(f"data={data!r} has no .txt or .jsonl file in it.")
        return concatenate_datasets([read_texts(file, column, whole) for file in files])
    # a dataset's name has at most one slash and no such ending
    if path.is_file() or path.suffix in _READERS or path.is_absolute() or len(path.parts) > 2:
        return read_texts(path, column, whole)
    try:
        rows = load_dataset(data, config, split="train")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data={data!r} is neither a file nor a folder here, and could not be loaded as a "
            f"dataset: {error}"
        ) from error
    return _only_text(rows, column, data, data)


def _only_text(rows: Dataset, column: str, name: str, data: str) -> Dataset:
    if column not in rows.column_names:
        raise ValueError(
            f"column={column!r} is not in {name}, which has {', '.join(rows.column_names)}."
        )
    rows = rows.select_columns(column)
    if column != "text":
        rows = rows.rename_column(column, "text")
    rows = rows.filter(
        lambda text: isinstance(text, str) and bool(text.strip()), input_columns="text"
    )
    if len(rows) == 0:
        raise ValueError(f"data={data!r} has no text in it.")
    return rows
