"""What may go into a head."""

from collections.abc import Mapping, Sequence
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
    labels: Any,
    rows: int,
    *,
    num_labels: int | None = None,
    every_class: bool = False,
    names: Mapping[int, str] | None = None,
) -> Tensor:
    """Labels as int64, (N,), on the CPU.

    Args:
        labels: one for each row: whole numbers, or names of the classes.
        rows: N.
        num_labels: C: labels must then be from 0 to C - 1.
        every_class: each of these must occur.
        names: of the classes.

    Raises:
        TypeError: neither whole numbers nor names.
        ValueError: another number of them, one outside the range, a name that is none of a class,
            or a class without rows.
    """
    if names and _are_names(labels):
        labels = _numbers(labels, names)
    try:
        found = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "labels are no whole numbers: number the classes from 0 on, or give id2label and their "
            "names."
        ) from error
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
        listed = ", ".join(class_name(one, names) for one in missing)
        raise ValueError(
            f"no row has label {listed} ({num_labels - len(present)} of {num_labels} classes): "
            "then nothing could be admitted. Give rows of every class, or number the classes "
            "without gaps: labels by their names are numbered so."
        )
    return found


def check_counts(counts: Tensor, names: Mapping[int, str] | None) -> None:
    """Raise ValueError unless every class has two distinct rows.

    Args:
        counts: (C,), of distinct rows.
        names: of the classes.
    """
    few = (counts < 2).nonzero().flatten().tolist()
    if few:
        raise ValueError(
            f"class {class_name(few[0], names)} has a single distinct row; each needs one for the "
            "support and one for calibration, and far more to admit anything."
        )


def class_name(label: int, names: Mapping[int, str] | None) -> str:
    """How messages call a class: by its name and number."""
    return str(label) if names is None or label not in names else f"{names[label]!r} ({label})"


def _are_names(labels: Any) -> bool:
    listed = isinstance(labels, Sequence) and not isinstance(labels, str)
    return listed and any(isinstance(one, str) for one in labels)


def _numbers(labels: Sequence[Any], names: Mapping[int, str]) -> list[int]:
    place = {name: number for number, name in names.items()}
    unknown = [one for one in labels if one not in place]
    if unknown:
        raise ValueError(
            f"labels has {unknown[0]!r}, which is none of id2label's names: {', '.join(place)}."
        )
    return [place[one] for one in labels]
