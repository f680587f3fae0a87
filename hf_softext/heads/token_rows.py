"""The token ids of a dataset, row by row."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
# texts that are tokenised together
_CHUNK = 1024
# a length from which on it is none, to a tokenizer too
UNBOUNDED = 2**31


class TokenRows:
    """Rows of token ids, which become batches padded on the right.

    Padding on the right leaves every token at its own position, for models with learned positions
    too; the id that fills it up is never seen.

    Attributes:
        rows: for each row its ids, and its token types where the tokenizer gives them: int32.
        pad: the id of padding.
    """

    def __init__(self, rows: list[dict[str, Tensor]], pad: int):
        self.rows, self.pad = rows, pad

    def __len__(self) -> int:
        return len(self.rows)

    def by_length(self) -> list[int]:
        """The numbers of the rows, the longest first: what does not fit in memory fails at once."""
        lengths = [len(row["input_ids"]) for row in self.rows]
        return sorted(range(len(lengths)), key=lambda index: -lengths[index])

    def first_of_equal(self) -> list[int]:
        """For each row the number of the first that has its ids."""
        seen: dict[bytes, int] = {}
        found = []
        for place, row in enumerate(self.rows):
            key = b"".join(row[name].numpy().tobytes() for name in sorted(row))
            found.append(seen.setdefault(hashlib.sha256(key).digest(), place))
        return found

    def digest(self) -> str:
        """SHA-256 of all ids."""
        digest = hashlib.sha256()
        for row in self.rows:
            for name, values in row.items():
                digest.update(f"{name} {len(values)} ".encode() + values.numpy().tobytes())
        return digest.hexdigest()

    def batches(self, size: int, progress: bool) -> Iterator[list[int]]:
        """The numbers of the rows, so many at a time, the longest first."""
        order = self.by_length()
        with tqdm(total=len(order), desc="scores", unit="row", disable=not progress) as bar:
            for at in range(0, len(order), size):
                yield order[at : at + size]
                bar.update(len(order[at : at + size]))

    def batch(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """The rows with these numbers, (B, L) int64 each."""
        picked = [self.rows[index] for index in chosen]
        length = max(len(row["input_ids"]) for row in picked)
        found: dict[str, Tensor] = {}
        for name in picked[0]:
            filler = self.pad if name == "input_ids" else 0
            found[name] = torch.full((len(picked), length), filler)
            for place, row in enumerate(picked):
                found[name][place, : len(row[name])] = row[name]
        found["attention_mask"] = torch.zeros((len(picked), length), dtype=torch.int64)
        for place, row in enumerate(picked):
            found["attention_mask"][place, : len(row["input_ids"])] = 1
        return found


def token_rows(
    dataset: Any, tokenizer: Any, body: nn.Module, text_column: str, max_length: int | None
) -> TokenRows:
    """Read and tokenise a dataset.

    Args:
        dataset: texts; mappings or a `datasets.Dataset` with a column of texts, or with one
            "input_ids" (and "attention_mask" and "token_type_ids" where there are), which then
            counts.
        tokenizer: of the model; None is enough for token ids.
        body: the backbone.
        text_column: the column of the texts.
        max_length: most tokens of a row, special ones included; None: as many as the model takes.

    Raises:
        TypeError: a dataset of another kind.
        ValueError: no rows, no such column, a row without tokens, or one longer than the model
            takes whose ids were given.
    """
    check_dataset(dataset, "dataset")
    columns = getattr(dataset, "column_names", None)
    if len(dataset) == 0:
        raise ValueError("dataset is empty: there is nothing to make features of.")
    if columns is None and not isinstance(dataset[0], str):
        if not all(isinstance(row, Mapping) for row in dataset):
            raise TypeError(f"dataset holds {type(dataset[0]).__name__}: give texts or mappings.")
        columns = sorted(set.intersection(*(set(row) for row in dataset)))
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length!r} must be at least 1.")
    limit = _positions(body)
    config: Any = body.config
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(config, "pad_token_id", None) if pad is None else pad
    if columns is not None and "input_ids" in columns:
        rows = _given(dataset, columns, limit, max_length)
    elif columns is not None and text_column not in columns:
        raise ValueError(
            f"text_column={text_column!r} is not a column of the dataset, which has "
            f"{', '.join(map(str, columns))}."
        )
    elif tokenizer is None:
        raise ValueError("tokenizer is missing: texts need one, only input_ids do not.")
    else:
        limit = longest_row(body, tokenizer)
        length = limit if max_length is None else min(limit, max_length)
        rows = _tokenised(dataset, columns, tokenizer, text_column, length)
    empty = [index for index, row in enumerate(rows) if not len(row["input_ids"])]
    if empty:
        raise ValueError(
            f"rows {', '.join(map(str, empty[:5]))} ({len(empty)} in all) have no tokens: leave "
            "empty texts out."
        )
    return TokenRows(rows, 0 if pad is None or pad < 0 else int(pad))


def check_dataset(dataset: Any, argument: str) -> None:
    """Raise TypeError for what is no dataset of rows that are all there; the message names the
    argument and what to give."""
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, Mapping):
        raise TypeError(
            f"{argument} has several splits ({', '.join(columns)}): give one of them, such as "
            f"{argument}[{next(iter(columns), 'train')!r}]."
        )
    if hasattr(dataset, "iloc"):
        raise TypeError(f"{argument} is of pandas: give datasets.Dataset.from_pandas({argument}).")
    if isinstance(dataset, str | Mapping) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{argument} of type {type(dataset).__name__}: give a datasets.Dataset, a list of "
            "texts, or a list of mappings."
        )


def _tokenised(
    dataset: Any, columns: Any, tokenizer: Any, column: str, length: int
) -> list[dict[str, Tensor]]:
    rows = []
    for start in range(0, len(dataset), _CHUNK):
        part = dataset[start : start + _CHUNK]
        part = list(part) if columns is None else _column(part, column)
        for place, text in enumerate(part):
            if not isinstance(text, str):
                raise ValueError(f"row {start + place} of the dataset is no text: {text!r}")
        cut = {"truncation": True, "max_length": length} if length < UNBOUNDED else {}
        encoded = tokenizer(part, **cut)
        names = [name for name in _COLUMNS if name in encoded and name != "attention_mask"]
        rows += [
            {name: torch.tensor(encoded[name][place], dtype=torch.int32) for name in names}
            for place in range(len(part))
        ]
    return rows


def _given(
    dataset: Any, columns: Any, limit: int, max_length: int | None
) -> list[dict[str, Tensor]]:
    names = [name for name in _COLUMNS if name in columns]
    rows = []
    for start in range(0, len(dataset), _CHUNK):
        part = dataset[start : start + _CHUNK]
        for values in zip(*(_column(part, name) for name in names), strict=True):
            rows.append(_row(dict(zip(names, values, strict=True)), max_length))
            if len(rows[-1]["input_ids"]) > limit:
                raise ValueError(
                    f"row {len(rows) - 1} of the dataset has {len(rows[-1]['input_ids'])} tokens, "
                    f"and the model takes {limit}: tokenise with truncation, or give max_length."
                )
    return rows


def _row(given: dict[str, Any], max_length: int | None) -> dict[str, Tensor]:
    row = {name: torch.as_tensor(one).flatten().to(torch.int32) for name, one in given.items()}
    if "attention_mask" in row:
        real = row.pop("attention_mask").bool()
        row = {name: one[real] for name, one in row.items()}
    return {name: one[:max_length] for name, one in row.items()}


def _column(part: Any, name: str) -> list[Any]:
    """A column of several rows of a `datasets.Dataset` or of a list of mappings."""
    return list(part[name]) if isinstance(part, Mapping) else [row[name] for row in part]


def longest_row(body: nn.Module, tokenizer: Any) -> int:
    """Most tokens that backbone and tokenizer take; from `UNBOUNDED` on any number."""
    limit = _positions(body)
    return min(limit, getattr(tokenizer, "model_max_length", limit))


def _positions(body: nn.Module) -> int:
    """The longest sequence that a model takes, as far as it says so."""
    config: Any = body.config
    config = config.get_text_config()
    found = [getattr(config, name, None) for name in _POSITIONS]
    limits = [value for value in found if isinstance(value, int) and value > 0]
    for name, module in body.named_modules():
        # RoBERTa and its like count positions from the padding token's id on
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            begin = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - begin)
    return min(limits, default=UNBOUNDED)
