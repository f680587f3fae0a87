"""The rows of a batch that count: flattened, checked, in float32."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hf_softext.losses.base import SoftextLoss

# what a training loop may hand over that is not one row for each row of the logits
WHOLE = frozenset({"head_weight"})


class Rows(NamedTuple):
    """The rows of a batch that count.

    Attributes:
        logits: (N, C), float32 or float64.
        labels: (N,), int64: classes; or (N, C): a float for each logit.
        weight: (N,), or (N, C) where each element has a loss: what it counts.
        extras: what else the loss needs, row by row.
    """

    logits: Tensor
    labels: Tensor
    weight: Tensor
    extras: dict[str, Any]


def divided(total: Tensor, num_items: Tensor | float) -> Tensor:
    """The sum of the losses by what it is divided by; where nothing counts both are 0, and it is
    0."""
    count = torch.as_tensor(num_items).to(total)
    return total / torch.where(count == 0, 1.0, count)


def has_columns(labels: Tensor) -> bool:
    """Whether labels hold a number for each logit, in their last dimension."""
    return labels.is_floating_point() and labels.dim() > 1


def select_rows(
    loss: "SoftextLoss",
    logits: Tensor,
    labels: Tensor,
    sample_weight: Tensor | None = None,
    extras: dict[str, Any] | None = None,
) -> Rows:
    """What of a batch counts for a loss; arguments as for its `forward`, which see.

    Raises:
        ValueError: shapes that do not fit, labels out of range or of another kind of problem, or
            something missing that the loss needs.
        TypeError: labels or logits of a wrong dtype.
    """
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"logits and labels must be tensors, and are {type(logits).__name__} and "
            f"{type(labels).__name__}."
        )
    if not logits.is_floating_point() or logits.dim() == 0 or logits.shape[-1] == 0:
        raise TypeError(f"logits of {logits.dtype} and shape {tuple(logits.shape)} are none.")
    labels, lead, classes = labels.to(logits.device), logits.shape[:-1], logits.shape[-1]
    values = labels.is_floating_point() or classes == 1
    if labels.shape != lead and not (values and labels.shape == logits.shape):
        raise ValueError(
            f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}: expected integers of shape {tuple(lead)} for classes, or "
            "floats of the shape of the logits for multi-hot labels and for values."
        )
    given = _flat_extras(loss, extras or {}, lead)
    weight = loss.weights(labels, sample_weight)
    z = (logits if logits.dtype == torch.float64 else logits.float()).reshape(-1, classes)
    y = labels.reshape(-1, classes) if labels.shape == logits.shape else labels.reshape(-1)
    y = y[:, 0] if y.dim() == 2 and not y.is_floating_point() else y
    valid = y != loss.ignore_index
    valid = valid if y.dim() == 1 else valid.any(-1)
    columns = has_columns(labels) and loss.elementwise and classes > 1
    weight = weight.reshape((-1, classes) if columns else (-1,))[valid].to(z.dtype)
    z, y = z[valid], y[valid]
    if y.dim() == 2 and loss.elementwise:
        # an ignored element of a row that counts, where 0 * NaN would be NaN in the gradient
        z = z.masked_fill(y == loss.ignore_index, 0.0)
    z, y = _checked(loss, z, y)
    kept = {name: value if name in WHOLE else value[valid] for name, value in given.items()}
    return Rows(z, y, weight, kept)


def _flat_extras(loss: "SoftextLoss", extras: dict[str, Any], lead: torch.Size) -> dict[str, Any]:
    missing = sorted(loss.needs - extras.keys()) if loss.training else []
    if missing:
        raise ValueError(f"{loss.name!r} needs {', '.join(missing)} with every batch in training.")
    flat = {}
    for name, value in extras.items():
        if name in WHOLE:
            flat[name] = value
            continue
        if value.shape[: len(lead)] != lead:
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} does not have the leading dimensions "
                f"{tuple(lead)} of the logits."
            )
        flat[name] = value.reshape(-1, *value.shape[len(lead) :])
    return flat


def _checked(loss: "SoftextLoss", z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels as `per_sample` takes them."""
    classes, eager = z.shape[-1], not torch.compiler.is_compiling()
    if y.is_floating_point():
        if y.dim() == 1 and classes != 1:
            raise TypeError(
                f"labels are {y.dtype}: pass the index of a class for each row, or a number for "
                f"each of the {classes} logits."
            )
        y = y.reshape(-1, classes).to(z.dtype)
    else:
        y, of = y.long(), max(classes, 2)
        if eager and bool(((y < 0) | (y >= of)).any()):
            raise ValueError(
                f"labels from {int(y.min())} to {int(y.max())} do not fit {of} classes: they must "
                f"be from 0 to {of - 1}, or ignore_index={loss.ignore_index}."
            )
        check_class_weight(loss, of)
        multiclass = bool(loss.kinds & {"multiclass", "token"})
        if "binary" in loss.kinds and (classes == 1 or (classes == 2 and not multiclass)):
            z, y = z[:, 1:] - z[:, :1] if classes == 2 else z, y[:, None].to(z.dtype)
        elif not multiclass or (classes == 1 and bool((y > 0).any())):
            _refuse(loss, f"the index of one of {of} classes, for {classes} logits a row")
    if y.dim() == 2:
        _check_values(loss, y, eager)
    return z, y


def _check_values(loss: "SoftextLoss", y: Tensor, eager: bool) -> None:
    binary = y.shape[-1] == 1 and "binary" in loss.kinds
    if not (loss.kinds & {"multilabel", "regression"} or binary):
        _refuse(loss, f"a number for each of {y.shape[-1]} logits")
    check_class_weight(loss, 2 if binary else y.shape[-1])
    if not eager:
        return
    ignored = y == loss.ignore_index
    if not loss.elementwise and bool(ignored.any()):
        raise ValueError(
            f"labels: {loss.name!r} looks at a row as a whole, and a row has some labels of "
            f"ignore_index={loss.ignore_index}; ignore all of a row or none."
        )
    if "regression" not in loss.kinds and bool(((y < 0) | (y > 1))[~ignored].any()):
        raise ValueError("labels of a multi-label problem must be from 0 to 1.")


def check_class_weight(loss: "SoftextLoss", classes: int) -> None:
    """Raise ValueError where the class weights are of another number of classes."""
    if loss.class_weight is not None and len(loss.class_weight) != classes:
        raise ValueError(
            f"class_weight has {len(loss.class_weight)} numbers, and there are {classes} classes."
        )


def _refuse(loss: "SoftextLoss", labels: str) -> None:
    raise ValueError(
        f"{loss.name!r} is for {', '.join(sorted(loss.kinds))} problems; the labels are {labels}."
    )
