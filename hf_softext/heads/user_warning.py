"""Warnings that point at the line of whoever called this package."""

import sys
import warnings

_INSIDE = ("hf_softext.", "torch.")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line outside of this package and of torch, whose decorators lie between.

    Args:
        message: what to do about it, too.
        category: of the warning.
    """
    depth, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_INSIDE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
