"""The state of a loss, beside the checkpoint of the model that it trains."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file

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
        ValueError: the checkpoint was trained with another loss or other arguments, or lacks the
            state that this loss has.
    """
    folder = Path(folder)
    own = json.loads(json.dumps(loss.config()))
    if (folder / CONFIG).is_file():
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if saved != own:
            raise ValueError(
                f"{folder} was trained with the loss {saved}, and this training has {own}: pass "
                "the same loss and loss_kwargs, or start without resume_from_checkpoint."
            )
    if (folder / STATE).is_file():
        loss.load_state_dict(load_file(folder / STATE))
    elif loss.state_dict():
        raise ValueError(
            f"{folder} has no {STATE}, and {loss.name!r} has a state: start without "
            "resume_from_checkpoint."
        )


def forget_loss(folder: str | Path) -> None:
    """Leave a finished model without what only a resume would need."""
    for name in (CONFIG, STATE):
        (Path(folder) / name).unlink(missing_ok=True)
