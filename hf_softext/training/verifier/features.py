"""Features of rows, shared among processes, and kept so that a run can go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from hf_softext.heads.backbone import backbone
from hf_softext.heads.features import extract_features
from hf_softext.heads.token_rows import token_rows


def shared_features(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    state: PartialState,
    folder: Path,
    *,
    pooling: str,
    layers: Sequence[int],
    batch_size: int,
    max_length: int | None,
    progress: bool,
) -> Tensor | None:
    """Features of all rows on the main process; None on the others.

    Every process makes those of a part of the rows and leaves them in the folder, which all of them
    see; there the main process finds them, and so does the next run after one that broke off.

    Args:
        model: is not changed.
        tokenizer: of the model.
        rows: each with "text", or with "input_ids", which then counts.
        state: which process this is.
        folder: of the features.
        pooling: see `extract_features`.
        layers: see `extract_features`.
        batch_size: rows at once.
        max_length: most tokens of a text.
        progress: whether the main process shows a bar.

    Raises:
        ValueError: as `extract_features`.
    """
    # rows of equal tokens once: made by two processes they may differ by rounding, and not be seen
    # to be equal
    first = token_rows(rows, tokenizer, backbone(model), "text", max_length).first_of_equal()
    place = {number: rank for rank, number in enumerate(dict.fromkeys(first))}
    distinct = [rows[number] for number in place]

    def make(number: int, shown: bool) -> Tensor:
        return extract_features(
            model,
            tokenizer,
            distinct[number :: state.num_processes],
            pooling=pooling,
            layers=layers,
            batch_size=batch_size,
            max_length=max_length,
            cache_dir=folder,
            progress=shown,
        )

    # few rows may leave a process without any
    shares = range(min(state.num_processes, len(distinct)))
    mine = None
    if state.process_index in shares:
        mine = make(state.process_index, progress and state.is_main_process)
    state.wait_for_everyone()
    if not state.is_main_process or mine is None:
        return None
    features = torch.empty(len(distinct), mine.shape[1])
    for number in shares:
        part = make(number, False) if number != state.process_index else mine
        features[number :: state.num_processes] = part
    return features[[place[number] for number in first]]
