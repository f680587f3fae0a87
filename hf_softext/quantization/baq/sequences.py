"""Token sequences to calibrate with, from texts or from token ids."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from torch import Tensor, nn
from transformers import AutoTokenizer

from hf_softext.data.texts import read_corpus

# running text is read until there is so much more of it than is used
_CHOICE = 4
# windows of running text, or single texts, which are short
_WINDOWS, _TEXTS = 128, 2048
_BATCH = 64
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def calibration_sequences(
    dataset: Any, tokenizer: Any, model: nn.Module, nsamples: int | None, seqlen: int, seed: int
) -> list[Tensor]:
    """Make sequences of token ids as the model would be given them.

    A model that continues text gets windows of running text: documents one after the other, each
    followed by the end-of-text token if there is one; windows do not overlap and begin with what
    the tokenizer begins every text with. Other models get texts one by one, with their special
    tokens; of a .txt file each line is one. Token ids are used as they are, without their padding,
    those longer than `seqlen` in several pieces.

    Args:
        dataset: a path or the name of a dataset as `read_corpus` takes it; a list of texts; a
            `datasets` dataset with a column "input_ids" or "text"; or token ids: a list of lists, a
            tensor (N, L), or mappings with "input_ids" and maybe "attention_mask".
        tokenizer: of transformers, or a name or folder to load it from; None for the model's own.
        model: what is calibrated.
        nsamples: most sequences; where there are more, some are drawn. None is 128 for a model that
            continues text, and 2,048 for another one, but no more tokens than 128 * `seqlen`.
        seqlen: most tokens of one; less if the model has fewer positions.
        seed: of the draw.

    Returns:
        (1, L) int64 each.

    Raises:
        ValueError: no text or tokens, ids outside of the vocabulary, no tokenizer, or another kind
            of data.
        FileNotFoundError: no such file or dataset.
    """
    if dataset is None:
        raise ValueError(
            "dataset is missing: give a text file, texts or token ids to calibrate with, or "
            'solver="rtn", which needs none.'
        )
    length = min(seqlen, _positions(model))
    draw = random.Random(seed)
    running = continues_text(model, model.config)
    if isinstance(dataset, str | Path):
        try:
            dataset = read_corpus(str(dataset), "text", whole=running)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"dataset={str(dataset)!r}: {error}") from error
    most = nsamples or (_WINDOWS if running else _TEXTS)
    ids = _given_ids(dataset, most, draw)
    if ids is None:
        make = _windows if running else _single_texts
        found = make(dataset, _tokenizer(tokenizer, model), most, length, draw)
    else:
        found = _pieces(ids, length)
        found = [found[index] for index in sorted(_drawn(len(found), most, draw))]
    if nsamples is None:
        total = accumulate(len(row) for row in found)
        found = [row for row, sum_ in zip(found, total, strict=True) if sum_ <= _WINDOWS * seqlen]
    if not found:
        raise ValueError("dataset holds no tokens to calibrate with.")
    _check_vocabulary(found, model)
    return [torch.tensor([row], dtype=torch.int64) for row in found]


def fingerprint(sequences: Sequence[Tensor]) -> dict[str, Any]:
    """What tells the data of a calibration apart: counts, and a hash of the ids."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(ids.shape[1].to_bytes(8, "little"))
        digest.update(ids.cpu().contiguous().numpy().astype("<i8").tobytes())
    tokens = sum(ids.shape[1] for ids in sequences)
    return {"sequences": len(sequences), "tokens": tokens, "sha256": digest.hexdigest()}


def continues_text(model: Any, config: Any) -> bool:
    """Whether a model, or a class of models with this config, tells the next token of a text."""
    generates = getattr(model, "can_generate", lambda: False)()
    return generates and not getattr(config, "is_encoder_decoder", False)


def _positions(model: Any) -> int:
    """The longest sequence that a model takes, as far as it says so."""
    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in _POSITIONS]
    limits = [value for value in found if isinstance(value, int) and value > 0]
    for name, module in model.named_modules():
        # RoBERTa and its like count positions from the padding token's id on
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=2**31)


def _tokenizer(given: Any, model: Any) -> Any:
    if not isinstance(given, str | Path | None):
        if not callable(given):
            raise ValueError(
                f"tokenizer={given!r}: give a tokenizer of transformers, its name, or its folder."
            )
        return given
    name = str(given or getattr(model.config, "name_or_path", "") or model.config._name_or_path)
    if not name:
        raise ValueError("tokenizer is missing, and the model does not say where it is from.")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer={given!r}: none could be loaded from {name!r} ({error}). Give one, or its "
            "name, or token ids as dataset."
        ) from error


def _given_ids(dataset: Any, nsamples: int, draw: random.Random) -> list[list[int]] | None:
    """The token ids that a dataset holds, without padding; None if it holds texts."""
    if isinstance(dataset, DatasetDict):
        raise ValueError(
            f"dataset has several splits ({', '.join(map(str, dataset))}): give one of them."
        )
    if isinstance(dataset, Dataset | IterableDataset):
        names = dataset.column_names or list(next(iter(dataset), {}))
        if "input_ids" in names:
            wanted = ["input_ids", *({"attention_mask"} & set(names))]
            return _given_ids(_some(dataset.select_columns(wanted), nsamples, draw), nsamples, draw)
        if "text" not in names:
            raise ValueError(
                f'dataset has no column "text" or "input_ids", but {", ".join(names)}.'
            )
        return None
    if isinstance(dataset, Mapping) and "input_ids" in dataset:
        rows = _rows(dataset["input_ids"])
        mask = dataset.get("attention_mask")
        if mask is None:
            return rows
        real = _rows(mask, "attention_mask")
        if [*map(len, rows)] != [*map(len, real)]:
            raise ValueError("dataset has input_ids and attention_mask of different shapes.")
        return [_unpadded(*pair) for pair in zip(rows, real, strict=True)]
    if isinstance(dataset, Tensor):
        return _rows(dataset)
    if isinstance(dataset, Sequence) and len(dataset) and not isinstance(dataset, str):
        if all(isinstance(row, str) for row in dataset):
            return None
        if all(isinstance(row, Mapping) and "input_ids" in row for row in dataset):
            found = [_given_ids(row, nsamples, draw) or [] for row in dataset]
            return [row for rows in found for row in rows]
        if not any(isinstance(row, str | Mapping) for row in dataset):
            return [row for rows in dataset for row in _rows(rows)]
    raise ValueError(
        f"dataset of type {type(dataset).__name__} cannot be read: give a path, texts, token ids, "
        'or a dataset with a column "text" or "input_ids".'
    )


def _rows(ids: Any, what: str = "token ids") -> list[list[int]]:
    """One or several sequences as lists of whole numbers; an empty list has none."""
    if isinstance(ids, Sequence) and not len(ids):
        return []
    try:
        found = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"dataset has {what} that are no whole numbers: {error}") from error
    # a mask may be made of booleans
    whole = not (found.is_floating_point() or found.is_complex())
    if (
        found.dim() not in (1, 2)
        or not whole
        or (found.dtype == torch.bool and what == "token ids")
    ):
        raise ValueError(
            f"dataset has {what} of shape {tuple(found.shape)} and dtype {found.dtype}: give whole "
            "numbers, (N, L) or (L,)."
        )
    return (found if found.dim() == 2 else found[None]).tolist()


def _unpadded(row: list[int], real: list[int]) -> list[int]:
    """The tokens that are no padding, which must follow one another."""
    places = [place for place, counts in enumerate(real) if counts]
    if places and places[-1] - places[0] >= len(places):
        raise ValueError(
            "dataset has an attention_mask with zeros between ones: only padding before or after a "
            "sequence can be left out."
        )
    return [row[place] for place in places]


def _pieces(rows: Iterable[list[int]], length: int) -> list[list[int]]:
    return [row[at : at + length] for row in rows for at in range(0, len(row), length)]


def _texts(dataset: Any, count: int | None, draw: random.Random) -> Iterator[str]:
    """The texts from a drawn one on, in their order and around; or `count` drawn ones."""
    if isinstance(dataset, IterableDataset):
        found: Iterable[str] = (row["text"] for row in dataset)
    else:
        column = dataset["text"] if isinstance(dataset, Dataset) else dataset
        size = len(column)
        if count is None:
            start = draw.randrange(max(size, 1))
            order: Iterable[int] = (*range(start, size), *range(start))
        else:
            order = draw.sample(range(size), size)
        found = (column[index] for index in order)
    texts = (text for text in found if isinstance(text, str) and text.strip())
    return islice(texts, count)


def _windows(
    dataset: Any, tokenizer: Any, nsamples: int, length: int, draw: random.Random
) -> list[list[int]]:
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    begin = whole[:at]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    size = max(length - len(begin), 1)
    stream: list[int] = []
    texts = _texts(dataset, None, draw)
    while len(stream) < _CHOICE * nsamples * size and (batch := list(islice(texts, _BATCH))):
        for row in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            stream += [*row, *end]
    count = len(stream) // size
    starts = [size * index for index in sorted(_drawn(count, nsamples, draw))]
    # less than one window is better than nothing
    starts = starts or [0] * bool(stream)
    return [[*begin, *stream[start : start + size]] for start in starts]


def _single_texts(
    dataset: Any, tokenizer: Any, nsamples: int, length: int, draw: random.Random
) -> list[list[int]]:
    length = min(length, tokenizer.model_max_length)
    texts = list(_texts(dataset, nsamples, draw))
    if not texts:
        return []
    return tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]


def _drawn(count: int, wanted: int, draw: random.Random) -> list[int]:
    return draw.sample(range(count), min(count, wanted))


def _some(dataset: Any, wanted: int, draw: random.Random) -> list[Mapping[str, Any]]:
    """At most so many rows: drawn ones, or the first of a stream."""
    if isinstance(dataset, IterableDataset):
        return list(islice(dataset, wanted))
    return [dataset[index] for index in sorted(_drawn(len(dataset), wanted, draw))]


def _check_vocabulary(sequences: Sequence[list[int]], model: Any) -> None:
    size = model.get_input_embeddings().num_embeddings
    for index, row in enumerate(sequences):
        wrong = [token for token in row if not 0 <= token < size]
        if wrong:
            raise ValueError(
                f"dataset: sequence {index} has the token id {wrong[0]}, but the model knows 0 to "
                f"{size - 1}. Is the tokenizer that of another model?"
            )
