"""Labelled texts, from files and datasets."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from hf_softext.data.tables import check_column, read_table, texts_of


@dataclass(frozen=True)
class Labels:
    """What the labels of a dataset are.

    Attributes:
        kind: "single_label_classification", "multi_label_classification" or "regression", as a
            model's `problem_type`.
        names: of the classes, in the order of their numbers; empty for a regression.
    """

    kind: str
    names: tuple[str, ...]

    def encode(self, label: Any) -> Any:
        """A label as a model takes it: a number, or a float for each class.

        Raises:
            ValueError: a class that is not known.
        """
        if self.kind == "regression":
            return float(label)
        if self.kind == "single_label_classification":
            return self._number(label)
        found = {self._number(one) for one in label}
        return [float(index in found) for index in range(len(self.names))]

    def _number(self, label: Any) -> int:
        name = str(label)
        if name not in self.names:
            raise ValueError(
                f"label {label!r} is none of the {len(self.names)} classes of the training data: "
                f"{', '.join(self.names[:5])}, ..."
            )
        return self.names.index(name)


def read_labelled(
    data: str, text: str, label: str, *, config: str | None = None, split: str = "train"
) -> Dataset:
    """Read labelled texts.

    Args:
        data: a .jsonl, .json, .csv, .tsv or .parquet file, or the name of a dataset.
        text: the column of the texts.
        label: the column of the labels: names, numbers, or lists of either.
        config: the configuration of a dataset, where it has several.
        split: the split of a dataset.

    Returns:
        A dataset with the columns "text" and "label"; classes that a dataset numbers have their
        names.

    Raises:
        FileNotFoundError: neither a file nor a dataset that can be loaded.
        ValueError: as `read_table` says, a missing column, or a row without label.
    """
    rows = read_table(data, config=config, split=split)
    for name, column in (("text_column", text), ("label_column", label)):
        check_column(rows, name, column)
    numbered, labels = rows.features[label], list(rows[label])
    empty = [index for index, one in enumerate(labels) if one is None]
    if empty:
        raise ValueError(f"data={data!r} has no label in row {empty[0]} (label_column={label!r}).")
    if isinstance(numbered, ClassLabel):
        labels = [numbered.int2str(one) for one in labels]
    return Dataset.from_dict({"text": texts_of(rows, "text_column", text), "label": labels})


def find_labels(labels: Iterable[Any], names: Iterable[str] | None = None) -> Labels:
    """What labels are: lists are multi-label, fractions a regression, all else classes.

    Args:
        labels: of the training data.
        names: of the classes, where a model has them already.
    """
    found = list(labels)
    several = any(isinstance(one, list | tuple) for one in found)
    if any(isinstance(one, float) and not float(one).is_integer() for one in found):
        return Labels("regression", ())
    flat = [one for row in found for one in row] if several else found
    # numbers in their order, and not 10 before 2
    unique = sorted(set(flat), key=lambda one: (isinstance(one, str), one))
    kind = "multi_label_classification" if several else "single_label_classification"
    return Labels(kind, tuple(map(str, unique)) if names is None else tuple(names))
