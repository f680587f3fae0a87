"""What all losses share: which labels count, in which precision, and what the sum is divided by."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_softext.losses._rows import check_class_weight, divided, has_columns, select_rows


class SoftextLoss(nn.Module):
    r"""A loss that is right under accumulation, many processes and half precision.

    $$L = \frac{\sum_i w_i\,\ell_i}{n}$$

    over the rows that are not ignored; $n$ is `num_items` where it is given, which a training loop
    sums over all micro-batches and processes of an optimizer step, and $\sum_i w_i$ otherwise. A
    subclass writes $\ell$ alone: `per_sample` where it is a sum over rows, `over_batch` where it
    is not.

    Args:
        ignore_index: rows (of multi-hot labels: elements) with this label count for nothing; they
            are taken out before anything is computed.
        class_weight: (C,), what each class counts, or each label of a multi-label problem. The mean
            is then over the weights, as in torch.

    Attributes:
        name: what the user types.
        kinds: the problems it is for: "multiclass" (a class a row), "token" (a class a token),
            "binary" (one logit, or two and their difference), "multilabel", "regression".
        decomposable: whether it is a sum over rows, and so independent of how a step is cut into
            micro-batches and processes.
        elementwise: whether, for labels of shape (N, C), each element has a loss, not each row.
        stateful: whether training changes buffers of it.
        fits: whether `fit` must see the training labels first.
        needs: names of what `forward` must be given besides, in training.
        collective: whether `over_batch` meets the other processes, and so must be called also
            where no row counts.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    decomposable: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    collective: ClassVar[bool] = False

    class_weight: Tensor | None

    def __init__(self, *, ignore_index: int = -100, class_weight: Sequence[float] | None = None):
        super().__init__()
        if class_weight is not None and not self.decomposable:
            raise ValueError(
                f"class_weight: {self.name!r} is no sum over rows, so no row has a weight in it."
            )
        self.ignore_index = ignore_index
        weight = None if class_weight is None else _class_weight(class_weight)
        self.register_buffer("class_weight", weight, persistent=False)

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """The loss of each row.

        Args:
            logits: (N, C), float32 or float64.
            labels: (N,), int64; or (N, C) as the logits.
            **extras: what the loss `needs`, row by row.

        Returns:
            (N,); for labels of shape (N, C), of an elementwise loss, (N, C).
        """
        raise NotImplementedError(f"{self.name!r} has no loss of a single row.")

    def over_batch(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """The loss of a batch whose rows depend on each other: a scalar.

        Args:
            logits: (N, C), float32 or float64, N at least 1.
            labels: as for `per_sample`.
            **extras: as for `per_sample`.
        """
        raise NotImplementedError(f"{self.name!r} is a sum over rows.")

    def fit(self, labels: Tensor) -> None:
        """See the labels of the whole training set, before training: (N,) or (N, C)."""

    def on_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 0; also after a resume within it."""

    def synchronize(self) -> None:
        """Make the state of all processes one; every process calls it, before a checkpoint."""

    def weights(self, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """What each row, or each element, counts: 0 where it is ignored.

        Args:
            labels: as for `forward`.
            sample_weight: as for `forward`.

        Returns:
            The shape of the labels, without the last dimension where a row of them has one loss.
        """
        weight = (labels != self.ignore_index).float()
        columns = has_columns(labels)
        if columns and not self.elementwise:
            weight = weight.amax(-1)
        if self.class_weight is not None:
            classes = self.class_weight.to(labels.device)
            if columns and labels.shape[-1] > 1 and not self.elementwise:
                raise ValueError(f"class_weight: {self.name!r} weighs no labels of a row.")
            if columns and labels.shape[-1] > 1:
                check_class_weight(self, labels.shape[-1])
                weight = weight * classes
            else:
                index = labels.long().clamp(0, len(classes) - 1)
                weight = weight * classes[index].reshape(weight.shape)
        if sample_weight is not None:
            own = sample_weight.to(labels.device).float()
            if own.shape != labels.shape[: own.dim()] or labels.dim() - own.dim() > columns:
                raise ValueError(
                    f"sample_weight of shape {tuple(own.shape)} does not fit labels of shape "
                    f"{tuple(labels.shape)}: give one number for each row."
                )
            weight = weight * own.reshape(own.shape + (1,) * (weight.dim() - own.dim()))
        return weight

    def count(self, labels: Tensor, sample_weight: Tensor | None = None, **extras: Any) -> Tensor:
        """What the sum of the losses of these labels is divided by: the sum of their `weights`.

        Args:
            labels: as for `forward`, of any batch.
            sample_weight: as for `forward`.
            **extras: as for `forward`; only losses that count something else than rows look.

        Returns:
            A scalar, float32, on the device of the labels.
        """
        return self.weights(labels, sample_weight).sum()

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        num_items: Tensor | float | None = None,
        sample_weight: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (..., C), any float dtype.
            labels: (...), integer classes; or floats of shape (..., C): multi-hot from 0 to 1, or
                the values of a regression; where C is 1 also (...).
            num_items: what to divide the sum by, by default `count(labels)`.
            sample_weight: (...), what each row counts.
            **extras: what the loss `needs`, with the leading dimensions of the logits.

        Returns:
            A scalar, float32 (float64 for float64). 0, with a gradient of 0, where nothing counts.
            NaN in a row that counts stays NaN.

        Raises:
            ValueError: shapes that do not fit, labels out of range, or something missing that the
                loss `needs`.
            TypeError: labels or logits of a wrong dtype.
        """
        with torch.autocast(logits.device.type, enabled=False):
            rows = select_rows(self, logits, labels, sample_weight, extras)
            if rows.logits.numel() == 0 and not self.collective:
                # not logits.sum() * 0, which is NaN where an ignored row is
                return rows.logits.sum()
            if not self.decomposable:
                if num_items is not None:
                    raise ValueError(
                        f"num_items={num_items!r}: {self.name!r} is no sum over rows; it is the "
                        "mean of each micro-batch, to be divided by their number."
                    )
                if sample_weight is not None:
                    raise ValueError(
                        f"sample_weight: {self.name!r} is no sum over rows, so none has a weight."
                    )
                return self.over_batch(rows.logits, rows.labels, **rows.extras)
            losses = self.per_sample(rows.logits, rows.labels, **rows.extras)
            if losses.dim() == 2:
                # an ignored element of a row that counts
                losses = losses.masked_fill(rows.labels == self.ignore_index, 0.0)
            weight = rows.weight
            weight = weight if weight.dim() == losses.dim() else weight[:, None]
            total = (losses * weight).sum()
            if num_items is None:
                num_items = self.count(labels, sample_weight, **extras)
            return divided(total, num_items)

    def gradient_(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        r"""Loss of each row, with the logits overwritten by its derivative. Optional.

        What a large vocabulary is trained with: no second array of the size of the logits.

        Args:
            logits: (N, C), float32; becomes $w_i\,\partial \ell_i / \partial z_i$.
            labels: (N,), int64.
            weight: (N,), what each row counts.

        Returns:
            (N,), not weighted.
        """
        raise NotImplementedError(f"{self.name!r} has no derivative in closed form here.")

    @property
    def in_place(self) -> bool:
        """Whether `gradient_` is there."""
        return type(self).gradient_ is not SoftextLoss.gradient_

    def config(self) -> dict[str, Any]:
        """Name and arguments, as `get_loss(**config)` takes them; JSON."""
        found = {name: getattr(self, name) for name in parameters(type(self))}
        if found["class_weight"] is not None:
            found["class_weight"] = found["class_weight"].tolist()
        return {"name": self.name, **found}

    def extra_repr(self) -> str:
        """The arguments that are not the defaults."""
        known, own = parameters(type(self)), self.config()
        return ", ".join(
            f"{name}={own[name]!r}" for name, default in known.items() if own[name] != default
        )


def _class_weight(given: Any) -> Tensor:
    try:
        weight = torch.as_tensor(given).float()
    except (TypeError, ValueError, RuntimeError):
        weight = torch.empty(0)
    if weight.dim() != 1 or len(weight) == 0 or not (weight.isfinite() & (weight >= 0)).all():
        raise ValueError(f"class_weight={given!r} must be a finite number >= 0 for each class.")
    return weight


def parameters(loss: type[SoftextLoss]) -> dict[str, Any]:
    """The keywords that a loss takes, with their defaults: its own and those of all losses."""
    found: dict[str, Any] = {}
    for kind in loss.__mro__:
        if not issubclass(kind, SoftextLoss) or "__init__" not in vars(kind):
            continue
        signature = inspect.signature(kind.__init__).parameters
        more = any(p.kind is p.VAR_KEYWORD for p in signature.values())
        for name, parameter in signature.items():
            if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                found.setdefault(name, parameter.default)
        if not more:
            break
    return found
