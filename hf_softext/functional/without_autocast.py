"""Computations that autocast does not reach."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products are computed in the dtype of what is multiplied.

    Args:
        x: what is computed with, of which the device is read. The meta device has no autocast.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
