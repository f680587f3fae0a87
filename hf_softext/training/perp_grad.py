"""Perpendicular gradients in the Trainer."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from hf_softext.optim.perp_grad import perp_grad


class PerpGradCallback(TrainerCallback):
    """Has the Trainer's optimizer step with gradients perpendicular to the weights.

        Trainer(..., callbacks=[PerpGradCallback()])

    `hf_softext.optim.perp_grad` says what that is. It comes after gradient accumulation and
    clipping, and keeps the length of each gradient, so a clipped gradient stays clipped. The
    checkpoint is that of the optimizer alone: resume with the callback to go on with it.

    Args:
        exclude: regular expressions; a parameter whose name contains a match keeps its gradient.
            For example `["norm", "embed_tokens", r"bias$"]`.
        **options: `renorm`, `granularity`, `min_residual` and `eps` of `perp_grad`.

    Raises:
        ValueError: when training begins: an expression that no parameter's name matches.
        Others: as `perp_grad`.
    """

    def __init__(self, exclude: Sequence[str] = (), **options: Any):
        if isinstance(exclude, str):
            raise TypeError(f"exclude={exclude!r} must be a list of regular expressions.")
        self.exclude = tuple(exclude)
        self.options = options
        self._handle: RemovableHandle | None = None

    def on_train_begin(
        self, args, state, control, model: Any = None, optimizer: Any = None, **kwargs
    ):
        """Hook the optimizer that this run steps."""
        self.remove()
        excluded: set[Tensor] = set()
        for pattern in self.exclude:
            found = [p for name, p in _named_parameters(model) if re.search(pattern, name)]
            if not found:
                raise ValueError(
                    f"exclude={pattern!r} matches no parameter's name; the first are "
                    f"{', '.join(name for name, _ in _named_parameters(model)[:3])}."
                )
            excluded.update(found)
        predicate = excluded.__contains__ if excluded else None
        self._handle = perp_grad(optimizer, exclude=predicate, **self.options)

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the optimizer as it was."""
        self.remove()

    def remove(self) -> None:
        """Take the hook off. Needed only after a run that an exception ended, and not even there
        if the Trainer trains again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _named_parameters(model: Any) -> list[tuple[str, Tensor]]:
    return list(model.named_parameters())
