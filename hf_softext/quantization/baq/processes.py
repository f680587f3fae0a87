"""The processes that `accelerate launch` started, if it did."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env


def processes() -> PartialState:
    """Which of how many processes this is.

    On a machine without an accelerator, or where the launcher was told to use none, processes talk
    over gloo; accelerate would take each for the only one.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


def from_main(item: Any) -> Any:
    """What the main process has, on every process."""
    return broadcast_object_list([item])[0] if processes().num_processes > 1 else item


def from_all(item: Any) -> list[Any]:
    """What every process has, in their order, on every process."""
    return gather_object([item]) if processes().num_processes > 1 else [item]
