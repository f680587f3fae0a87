"""Class numbers from what people have as labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_softext.heads.token_rows import check_dataset


def class_numbers(labels: Any, rows: int, numbers: Mapping[str, int] | None = None) -> Tensor:
    """Labels as (N,) int64.

    Args:
        labels: a tensor, an array or a list of whole numbers from 0 on; or names.
        rows: N.
        numbers: of the names, such as `model.config.label2id`.

    Raises:
        ValueError: another count, names without numbers, or what is no class number.
    """
    if isinstance(labels, Sequence) and any(isinstance(one, str) for one in labels):
        unknown = [one for one in labels if one not in (numbers or {})]
        if unknown or numbers is None:
            raise ValueError(
                f"labels has the name {unknown[0]!r}, which the model's config.label2id does not "
                "know: give numbers from 0 on."
            )
        labels = [numbers[one] for one in labels]
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels are no whole numbers: {error}") from error
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.dim() != 1 or not whole:
        raise ValueError(
            f"labels of shape {tuple(found.shape)} and dtype {found.dtype} must be (N,) whole "
            "numbers."
        )
    if len(found) != rows:
        raise ValueError(f"labels has {len(found)} rows, and the features {rows}.")
    if rows and int(found.min()) < 0:
        raise ValueError(f"labels has {int(found.min())}: classes are numbered from 0 on.")
    return found.long()


def every_class(numbers: Tensor) -> int:
    """C, the number of classes, each of which has a row.

    Args:
        numbers: (N,), as `class_numbers` gives them; N is above 0.

    Raises:
        ValueError: a number below the highest one is missing.
    """
    present, most = numbers.unique(), int(numbers.max())
    if len(present) <= most:
        # not by counting up to the highest number, which may be anything
        gap = int((present != torch.arange(len(present)).to(present)).int().argmax())
        raise ValueError(
            f"labels go up to {most}, and class {gap} has no row: number the classes without gaps, "
            "or give rows of it."
        )
    return most + 1


def dataset_labels(dataset: Any, labels: Any, model: Any) -> tuple[Tensor, dict[int, str]]:
    """The labels of a dataset: those given, or a column of it.

    Names that the model does not know are numbered in their order, unless it knows some of them.

    Args:
        dataset: a `datasets.Dataset` or a list of mappings.
        labels: the name of the column, or the labels themselves.
        model: whose config numbers the names.

    Returns:
        (N,), int64; and the names of the classes, by number, where labels are names.

    Raises:
        TypeError: no dataset.
        ValueError: no such column, or as `class_numbers` says.
    """
    check_dataset(dataset, "dataset")
    if isinstance(labels, str):
        columns = getattr(dataset, "column_names", None)
        if columns is None:
            first = dataset[0] if len(dataset) else {}
            columns = sorted(first) if isinstance(first, Mapping) else []
        if labels not in columns:
            raise ValueError(
                f"labels={labels!r} is not a column of the dataset, which has "
                f"{', '.join(columns) or 'none'}: name one, or give the labels themselves."
            )
        whole = dataset[:]
        column = whole[labels] if isinstance(whole, Mapping) else [row[labels] for row in whole]
        labels = list(column)
    known = dict(getattr(model.config, "label2id", None) or {})
    named = isinstance(labels, Sequence) and all(isinstance(one, str) for one in labels)
    if named and labels and not set(labels) & set(known):
        known = {name: number for number, name in enumerate(sorted(set(labels)))}
    numbers = class_numbers(labels, len(dataset), known)
    return numbers, {number: name for name, number in known.items()} if named else {}


def without_gaps(
    numbers: Sequence[Any], names: Mapping[int, str]
) -> tuple[list[int], dict[int, str]]:
    """Class numbers from 0 on for a part of the classes, in the same order, by their names.

    Args:
        numbers: of the rows.
        names: of all classes.

    Returns:
        The new numbers, and the names of those classes. Where a number has no name, both are as
        they were given.
    """
    present = sorted(set(numbers)) if all(isinstance(one, int) for one in numbers) else []
    if not present or any(one not in names for one in present):
        return list(numbers), dict(names)
    place = {label: rank for rank, label in enumerate(present)}
    return [place[one] for one in numbers], {place[one]: names[one] for one in present}


def check_rows(features: Tensor, what: str = "features") -> None:
    """Raise ValueError unless they are (N, D), floating point, finite, with N above 0, and
    TypeError for what is no tensor."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{what} is of type {type(features).__name__}: give a tensor, (N, D).")
    if features.dim() != 2 or not features.is_floating_point() or 0 in features.shape:
        raise ValueError(
            f"{what} of shape {tuple(features.shape)} and dtype {features.dtype} must be (N, D), "
            "floating point, and not empty."
        )
    wrong = (~features.isfinite().all(1)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"{what} holds inf or NaN in rows {', '.join(map(str, wrong[:5]))} ({len(wrong)} in "
            "all)."
        )
