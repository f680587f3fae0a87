"""Checkpoints of a run in progress: whose they are, and which of them is whole."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from hf_softext import resume


def needed(args: Any, name: str) -> str:
    """The value of an argument that has no default; raises ValueError where it is not given."""
    value = getattr(args, name)
    if not value:
        raise ValueError(f"{name} is missing.")
    return value


def claim(work: Path, args: Any, identity: Sequence[str]) -> None:
    """Make the work folder this run's own, or make sure that it is.

    Args:
        work: the folder of the run in progress; it is made if it is not there.
        args: the run's arguments.
        identity: the names of those that make two runs the same, so that one can continue the
            other.

    Raises:
        ValueError: the folder holds a run with other arguments, or something else.
    """
    resume.claim(work, {name: str(getattr(args, name)) for name in identity})


def last_complete_checkpoint(work: Path) -> str | None:
    """The newest checkpoint whose last file was written in full; those that are not are removed."""
    found = sorted(
        work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True
    )
    for path in found:
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            return str(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path, ignore_errors=True)
    return None


def train_to_end(trainer: Trainer, work: Path) -> None:
    """Train from the newest complete checkpoint, or from the start if there is none.

    A run that was interrupted after its last step is only loaded: the Trainer would take one more.
    """
    checkpoint = last_complete_checkpoint(work)
    if checkpoint is not None:
        state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
        if state.global_step >= state.max_steps:
            trainer.state = state
            trainer._load_from_checkpoint(checkpoint)
            return
    trainer.train(resume_from_checkpoint=checkpoint)


def publish(staged: Path, final: Path, work: Path) -> None:
    """Have a finished checkpoint appear at once where it belongs, and clear the work away."""
    final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(staged, final)
    shutil.rmtree(work)
