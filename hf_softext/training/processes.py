"""Whether the processes that a launcher started are one training."""

import os
from typing import Any


def launched() -> int:
    """How many processes the launcher says that there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def must_stay_on_cpu() -> bool:
    """Whether there are several processes and no accelerator for them.

    Left to itself accelerate takes each of them for the only one then.
    """
    if launched() < 2:
        return False
    # not for `--help`, as this takes a second
    import torch

    return not torch.accelerator.is_available()


def check_joined(args: Any) -> None:
    """Raise ValueError where several processes would each train alone, into one folder.

    Args:
        args: a `TrainingArguments`.
    """
    if launched() > 1 and args.world_size == 1:
        raise ValueError(
            f"{launched()} processes were launched, and each would train alone, into one "
            "output_dir: without an accelerator for each of them give use_cpu=True (or set "
            "ACCELERATE_USE_CPU=true), so that they join over gloo."
        )
