"""What the modules of this folder ask of their arguments."""

import math
from typing import Any, TypeGuard, TypeVar

from torch import nn

from hf_softext.adapters.snnk.kernels import KERNELS
from hf_softext.catalog import did_you_mean

_Kind = TypeVar("_Kind", bound=nn.Module)


def check_size(name: str, value: Any) -> None:
    """Raise ValueError for what is no whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number of at least 1.")


def check_seed(name: str, value: Any) -> None:
    """Raise ValueError for what a generator of torch does not take."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not -(2**63) <= value < 2**64:
        raise ValueError(f"{name}={value!r}: give a whole number of at most 64 bits.")


def check_kernel(kernel: Any, num_features: Any, floor: Any) -> None:
    """Raise ValueError for an unknown kernel, or what it cannot have."""
    if kernel not in [*KERNELS]:
        raise ValueError(f"kernel={kernel!r}.{did_you_mean(str(kernel), [*KERNELS])}")
    check_size("num_features", num_features)
    parts = KERNELS[kernel].parts
    if num_features % parts:
        raise ValueError(
            f"num_features={num_features}: kernel={kernel!r} makes {parts} features of each row "
            f"of the projection, give a multiple of {parts}."
        )
    number = isinstance(floor, int | float) and not isinstance(floor, bool)
    if not number or not math.isfinite(floor):
        raise ValueError(f"floor={floor!r}: give a finite number.")
    if floor and kernel != "relu":
        raise ValueError(f"floor={floor}: only kernel='relu' has one, not {kernel!r}.")


def input_length(normalize: Any) -> float | None:
    """The length that inputs are scaled to, or None.

    Args:
        normalize: a number, "unit" for 1, or None.

    Raises:
        ValueError: anything else.
    """
    if normalize is None:
        return None
    if normalize == "unit":
        return 1.0
    number = isinstance(normalize, int | float) and not isinstance(normalize, bool)
    if not number or not 0 < normalize < math.inf:
        raise ValueError(f'normalize={normalize!r}: give a length above 0, "unit" or None.')
    return float(normalize)


def computes_as(module: Any, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether a module is of a kind and computes what that does: a subclass may do otherwise."""
    return isinstance(module, kind) and type(module).forward is kind.forward
