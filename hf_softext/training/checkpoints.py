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

# of `TrainingArguments` and of the losses: what makes two trainings the same
TRAINING_IDENTITY = (
    "loss",
    "loss_kwargs",
    "perp_grad",
    "max_steps",
    "num_train_epochs",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_args",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
)


def needed(args: Any, name: str) -> str:
    """The value of an argument that has no default; raises ValueError where it is not given."""
    value = getattr(args, name)
    if not value:
        raise ValueError(f"{name} is missing: give --{name}, or a YAML file; see --help.")
    return value


def check_new(final: Path) -> None:
    """Raise FileExistsError where there is something in the place of a result already.

    Args:
        final: the `output_dir`, where a result appears whole or not at all.
    """
    if not final.exists():
        return
    card = final / "README.md"
    ours = card.is_file() and "hf_softext" in card.read_text(encoding="utf-8", errors="replace")
    finished = " it is finished;" if ours else ""
    raise FileExistsError(
        f"output_dir={str(final)!r} exists:{finished} remove it or choose another."
    )


def claim(work: Path, args: Any, identity: Sequence[str]) -> None:
    """Make the work folder this run's own, or make sure that it is.

    Args:
        work: the folder of the run in progress; it is made if it is not there.
        args: the run's arguments.
        identity: the names of those that make two runs the same, so that one can continue the
            other, as far as a run has them.

    Raises:
        ValueError: the folder holds a run with other arguments, or something else.
    """
    resume.claim(work, {name: str(getattr(args, name)) for name in identity if hasattr(args, name)})


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
        if trainer.is_world_process_zero():
            print(f"{work} continues from step {checkpoint.rpartition('-')[2]}", flush=True)
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
