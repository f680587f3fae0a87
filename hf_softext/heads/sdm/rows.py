"""What may go into a head."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

_NO_NUMBERS = (torch.bool, torch.complex64, torch.complex128)


def check_features(features: Any, num_features: int | None, *, finite: bool = False) -> None:
    """Make sure that features are rows of floats.

    Args:
        features: should be (N, D), floating point.
        num_features: D; None: any.
        finite: whether NaN and infinities are refused.

    Raises:
        TypeError: no tensor of floats.
        ValueError: another shape, or values that are not finite.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features are {kind}: give a tensor of floats, (N, D).")
    if features.dim() != 2 or num_features not in (None, features.shape[1]):
        wanted = "D" if num_features is None else num_features
        raise ValueError(f"features of shape {tuple(features.shape)} must be (N, {wanted}).")
    if finite:
        wrong = (~features.float().isfinite().all(1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"features of rows {', '.join(map(str, wrong[:5]))} ({len(wrong)} in all) hold NaN "
                "or infinities: leave these rows out, or look why the model overflows."
            )


def check_labels(
    labels: Any, rows: int, *, num_labels: int | None = None, every_class: bool = False
) -> Tensor:
    """Labels as int64, (N,), on the CPU.

    Args:
        labels: whole numbers, one for each row.
        rows: N.
        num_labels: C: labels must then be from 0 to C - 1.
        every_class: each of these must occur.

    Raises:
        TypeError: no whole numbers.
        ValueError: another number of them, one outside the range, or a class without rows.
    """
    try:
        found = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError("labels are no whole numbers: number the classes from 0 on.") from error
    # an empty list becomes float32
    if found.numel() and (found.dtype.is_floating_point or found.dtype in _NO_NUMBERS):
        raise TypeError(f"labels are {found.dtype}: give whole numbers, from 0 to C - 1.")
    if found.shape != (rows,):
        raise ValueError(f"labels of shape {tuple(found.shape)}: one for each of {rows} rows.")
    found = found.long()
    if num_labels is None:
        return found
    outside = found[(found < 0) | (found >= num_labels)]
    if len(outside):
        raise ValueError(
            f"label {int(outside[0])} is outside of 0 to {num_labels - 1}: leave such rows out; "
            "they can be added to the support later, where they never match."
        )
    present = set(found.tolist())
    if every_class and len(present) < num_labels:
        missing = list(islice((one for one in range(num_labels) if one not in present), 5))
        raise ValueError(
            f"no row has label {', '.join(map(str, missing))} ({num_labels - len(present)} of "
            f"{num_labels} classes): then nothing could be admitted. Give rows of every class, or "
            "number the classes without gaps."
        )
    return found
