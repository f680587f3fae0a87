"""Labelled rows for an SDM head: texts with labels, or completions that are good or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import ClassLabel, Dataset

from hf_softext.data.labelled import Labels, find_labels
from hf_softext.data.tables import check_column, read_table, texts_of
from hf_softext.heads.sdm.completions import completion_rows
from hf_softext.heads.sdm.verifier import CLASSES

_FLAGS = {"true": True, "yes": True, "good": True, "1": True}
_FLAGS |= {"false": False, "no": False, "bad": False, "0": False}


@dataclass(frozen=True)
class Columns:
    """Where the parts of a row are.

    Attributes:
        text: of a classification.
        label: likewise.
        prompt: of a generation.
        completion: likewise.
        good: whether the completion is.
    """

    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    completion: str = "completion"
    good: str = "is_good"


@dataclass(frozen=True)
class LabelledRows:
    """Rows that features can be made of.

    Attributes:
        rows: each with "text", and "input_ids" for a generation.
        labels: of each, a number.
        ids: of each, its number in the data.
        names: of the classes, in the order of their numbers.
        words: the label of each, as the data has it; empty for a generation.
    """

    rows: list[dict[str, Any]]
    labels: list[int]
    ids: list[str]
    names: tuple[str, ...]
    words: tuple[str, ...] = ()

    def pick(self, places: Sequence[int]) -> "LabelledRows":
        """Some of the rows."""
        return LabelledRows(
            [self.rows[place] for place in places],
            [self.labels[place] for place in places],
            [self.ids[place] for place in places],
            self.names,
            tuple(self.words[place] for place in places) if self.words else (),
        )

    def held_out(self, share: float, seed: int) -> tuple["LabelledRows", "LabelledRows"]:
        """The rows in two, a share of every class in the second."""
        draw = torch.Generator().manual_seed(seed)
        labels = torch.tensor(self.labels)
        second = set()
        for label in labels.unique().tolist():
            places = (labels == label).nonzero()[:, 0]
            order = torch.randperm(len(places), generator=draw)
            second |= set(places[order[: round(share * len(places))]].tolist())
        first = [place for place in range(len(self.rows)) if place not in second]
        return self.pick(first), self.pick(sorted(second))


def find_task(table: Dataset, columns: Columns, task: str = "auto") -> str:
    """Which task the columns of a table are for.

    Raises:
        ValueError: they are for both or neither, and `task` leaves it open.
    """
    if task != "auto":
        return task
    present = set(table.column_names)
    needed = {
        "classification": {columns.text, columns.label},
        "generation": {columns.prompt, columns.completion, columns.good},
    }
    found = [name for name, wanted in needed.items() if wanted <= present]
    if len(found) != 1:
        raise ValueError(
            f"the data has the columns {', '.join(table.column_names)}: a classification needs "
            f"{columns.text} and {columns.label}, a generation {columns.prompt}, "
            f"{columns.completion} and {columns.good}. Name them (text_column and so on), or say "
            "which it is with task."
        )
    return found[0]


def read_texts(
    table: Dataset,
    columns: Columns,
    known: Sequence[str],
    names: Sequence[str] | None = None,
    *,
    out_of_scope: bool = False,
) -> LabelledRows:
    """Texts with labels.

    Args:
        table: what was read.
        columns: where the parts are.
        known: names of the model's classes, whose order counts if they are those of the data.
        names: of the classes that a head has; None: those of the data.
        out_of_scope: whether labels that are none of these names get the number -1.

    Raises:
        ValueError: a missing column or label, an empty text, one class only, or labels that are no
            classes of one kind.
    """
    texts = texts_of(table, "text_column", columns.text)
    check_column(table, "label_column", columns.label)
    labels = list(table[columns.label])
    feature = table.features[columns.label]
    for place, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if label is None or not text.strip():
            what = "label" if label is None else "text"
            raise ValueError(f"row {place} of the data has no {what}: leave it out.")
    if isinstance(feature, ClassLabel):
        labels = [feature.int2str(one) for one in labels]
    found = find_labels(labels)
    if found.kind != "single_label_classification":
        raise ValueError(
            f"label_column={columns.label!r} holds a {found.kind.replace('_', ' ')}: a head needs "
            "one class for each text."
        )
    if names is None and len(found.names) < 2:
        raise ValueError(
            f"label_column={columns.label!r} holds {labels[0]!r} throughout: there is nothing to "
            "tell apart."
        )
    names = _names(found.names, known) if names is None else tuple(names)
    ids = [str(place) for place in range(len(texts))]
    rows = [{"text": text} for text in texts]
    numbers = [_number(names, one, out_of_scope) for one in labels]
    return LabelledRows(rows, numbers, ids, names, tuple(map(str, labels)))


def _names(found: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Those of the model where they are the same, or where the data has their numbers."""
    # transformers names classes LABEL_0 and so on where a model has no names
    told = len(known) == len(found) and not all(name.startswith("LABEL_") for name in known)
    numbers = tuple(found) == tuple(map(str, range(len(found))))
    return tuple(known if told and (numbers or sorted(known) == sorted(found)) else found)


def _number(names: Sequence[str], label: Any, out_of_scope: bool) -> int:
    """A class's number, from its name or, where no name is meant, its number."""
    word = str(label)
    if word not in names and word.isdigit() and int(word) < len(names):
        return int(word)
    if out_of_scope and word not in names:
        return -1
    return Labels("single_label_classification", tuple(names)).encode(label)


def read_completions(
    table: Dataset, columns: Columns, tokenizer: Any, longest: int | None
) -> LabelledRows:
    """Prompts with completions.

    Args:
        table: what was read.
        columns: where the parts are.
        tokenizer: of the model.
        longest: most tokens of both.

    Raises:
        ValueError: a missing column, a flag that is none, or what `completion_rows` raises.
    """
    prompts = texts_of(table, "prompt_column", columns.prompt)
    completions = texts_of(table, "completion_column", columns.completion)
    check_column(table, "good_column", columns.good)
    labels = []
    for place, one in enumerate(table[columns.good]):
        # a table may have true, 1.0 or "Yes"
        word = str(int(one) if one in (0, 1) else one).strip().lower()
        if word not in _FLAGS:
            raise ValueError(
                f"good_column={columns.good!r} holds {one!r} in row {place}: true or false, yes or "
                "no, good or bad, 1 or 0 are known."
            )
        labels.append(int(_FLAGS[word]))
    rows = completion_rows(tokenizer, prompts, completions, longest)
    ids = [str(place) for place in range(len(rows))]
    return LabelledRows(rows, labels, ids, tuple(CLASSES.values()))


def read_rows(
    data: str,
    columns: Columns,
    task: str,
    *,
    config: str | None,
    split: str,
    tokenizer: Any,
    longest: int | None,
    known: Sequence[str] = (),
    names: Sequence[str] | None = None,
    out_of_scope: bool = False,
) -> tuple[str, LabelledRows]:
    """The task and its rows; arguments and errors as above."""
    table = read_table(data, config=config, split=split)
    task = find_task(table, columns, task)
    if task == "generation":
        return task, read_completions(table, columns, tokenizer, longest)
    return task, read_texts(table, columns, known, names, out_of_scope=out_of_scope)
