"""The state of a loss, beside the checkpoint of the model that it trains."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_softext.losses import SoftextLoss

STATE, CONFIG = "softext_loss.safetensors", "softext_loss.json"


def save_loss(loss: SoftextLoss, folder: str | Path) -> None:
    """Write name and arguments of a loss, and its buffers where it has any."""
    folder = Path(folder)
    staged = folder / f"{CONFIG}.tmp"
    staged.write_text(json.dumps(loss.config(), indent=2) + "\n", encoding="utf-8")
    os.replace(staged, folder / CONFIG)
    state = {name: value.contiguous().cpu() for name, value in loss.state_dict().items()}
    if state:
        staged = folder / f"{STATE}.tmp"
        save_file(state, staged)
        os.replace(staged, folder / STATE)


def load_loss(loss: SoftextLoss, folder: str | Path) -> None:
    """Give a loss the state that it was saved with.

    Raises:
        ValueError: the checkpoint was trained with another loss, other arguments or another number
            of samples, lacks the state that this loss has, or is damaged.
    """
    folder = Path(folder)
    own = json.loads(json.dumps(loss.config()))
    try:
        saved, state = _read(folder)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: the state of the loss is damaged ({error}): resume from another checkpoint."
        ) from error
    if saved is not None and saved != own:
        raise ValueError(
            f"{folder} was trained with the loss {saved}, and this training has {own}: pass the "
            "same loss and loss_kwargs, or start without resume_from_checkpoint."
        )
    if state is not None:
        for name, value in loss.state_dict().items():
            # nothing yet where no training set was seen
            if value.numel() and name in state and state[name].shape != value.shape:
                raise ValueError(
                    f"{folder} has {name!r} of shape {tuple(state[name].shape)} for "
                    f"{loss.name!r}, and this training set {tuple(value.shape)}: resume with the "
                    "training set that it was trained with."
                )
        loss.load_state_dict(state)
    elif loss.state_dict():
        raise ValueError(
            f"{folder} has no {STATE}, and {loss.name!r} has a state: start without "
            "resume_from_checkpoint."
        )


def _read(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor] | None]:
    """Name and arguments, and buffers; None for a file that is not there."""
    config, state = folder / CONFIG, folder / STATE
    return (
        json.loads(config.read_text(encoding="utf-8")) if config.is_file() else None,
        load_file(state) if state.is_file() else None,
    )


def forget_loss(folder: str | Path) -> None:
    """Leave a finished model without what only a resume would need."""
    for name in (CONFIG, STATE):
        (Path(folder) / name).unlink(missing_ok=True)
