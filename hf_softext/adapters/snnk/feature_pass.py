"""A pass of a frozen model over data that takes up what its output layer sees."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from transformers import GenerationMixin

from hf_softext.adapters.snnk._common import computes_as
from hf_softext.functional.ridge import NormalEquations

# of labels that do not count
IGNORED = -100


class FeaturePass:
    """The sums of this process, and the layer whose inputs they are of.

    Args:
        model: in evaluation mode.
        head: the output layer, or None: the last linear one that is called.
        labels: their name in a batch.

    Raises:
        TypeError: a head that is no `torch.nn.Linear`.
        ValueError: there is no layer that could be the output layer.
    """

    def __init__(self, model: nn.Module, head: nn.Linear | None, labels: str):
        self.model, self.labels = model, labels
        self.candidates = {
            # one with a weight that is computed from others has no place for a solution
            name: module
            for name, module in model.named_modules()
            if computes_as(module, nn.Linear) and "weight" in module._parameters
        }
        if head is not None:
            if not computes_as(head, nn.Linear):
                raise TypeError(f"head is a {type(head).__name__}: give a torch.nn.Linear.")
            self.candidates = {n: m for n, m in self.candidates.items() if m is head}
        # transformers has num_labels=2 for models without classes too
        elif hasattr(model, "config") and hasattr(model, "num_labels"):
            wanted = model.num_labels
            self.candidates = {n: m for n, m in self.candidates.items() if m.out_features == wanted}
        if not self.candidates:
            raise ValueError(
                f"{type(model).__name__} has no linear layer that makes its logits"
                + ("" if head is None else ": the head is no part of it")
                + ". Give it one, such as SnnkHead, with as many outputs as there are classes."
            )
        # the loss of a causal language model compares a position with the label after it
        self.shifts = (
            labels == "labels"
            and isinstance(model, GenerationMixin)
            and not getattr(model.config, "is_encoder_decoder", False)
        )
        self.name: str | None = None
        self.sums: NormalEquations | None = None
        self.seen: Tensor | None = None
        self._last: tuple[str, Tensor, Tensor] | None = None

    @property
    def layer(self) -> nn.Linear:
        """The output layer, once a batch was taken."""
        return self.candidates[str(self.name)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the layers say what they see."""

        def hook(name: str) -> Callable[..., None]:
            def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                self._last = name, inputs[0], output

            return keep

        handles = [
            module.register_forward_hook(hook(name)) for name, module in self.candidates.items()
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def take(self, batch: Any, counted: Callable[[int], int]) -> None:
        """Run the model on a batch and take up its rows.

        Args:
            batch: a mapping with labels, or a pair of an input and labels.
            counted: how many of so many rows count; these are the first.

        Raises:
            TypeError: a batch of another kind.
            ValueError: whatever is wrong with it.
        """
        labels, logits = self._forward(batch)
        if self._last is None:
            raise ValueError("no linear layer that could be the output layer was called.")
        (name, z, output), self._last = self._last, None
        self._check(name, output, logits)
        layer = self.candidates[name]
        if len(labels) != len(z):
            raise ValueError(f"a batch has {len(z)} rows of features and {len(labels)} of labels.")
        count = counted(len(labels))
        z, labels = z[:count], labels[:count].to(z.device)
        rows, y, classes = targets_of(z, labels, layer.out_features)
        if self.sums is None:
            self.start(name, z.device)
        assert self.sums is not None
        assert self.seen is not None
        self.sums.add(rows, y)
        if classes is not None:
            self.seen[classes] = 1

    def start(self, name: str, device: torch.device, tensors: Any = None) -> None:
        """Begin with nothing, or with what `tensors` of an earlier pass gave."""
        self.name = name
        # the only kind of device without float64
        device = torch.device("cpu") if device.type == "mps" else device
        self.sums = NormalEquations(self.layer.in_features, self.layer.out_features, device)
        self.seen = torch.zeros(self.layer.out_features, dtype=torch.float64, device=device)
        for key, tensor in (tensors or {}).items():
            self.tensors()[key].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was taken up, by name."""
        assert self.sums is not None
        assert self.seen is not None
        return {**self.sums.sums(), "seen": self.seen}

    def finish(self, state: PartialState, device: torch.device) -> NormalEquations:
        """The sums over all processes, on each of them.

        Raises:
            ValueError: nothing to fit to, or a single class.
        """
        names = [self.name]
        if state.num_processes > 1:
            names = gather_object([self.name])
        name = next((one for one in names if one is not None), None)
        if name is None:
            raise ValueError("dataloader has no batches.")
        if self.sums is None:
            self.start(name, device)
        if state.num_processes > 1:
            for tensor in self.tensors().values():
                total: Any = reduce(tensor, "sum")
                tensor.copy_(total)
        assert self.sums is not None
        assert self.seen is not None
        if self.sums.rows == 0:
            raise ValueError(f"there are no rows to fit to: every label is {IGNORED}.")
        if (self.seen > 0).sum() == 1:
            raise ValueError(
                f"every label is class {int(self.seen.argmax())}: two classes are needed, else the "
                "fit says that one always."
            )
        return self.sums

    def _forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Mapping):
            if batch.get(self.labels) is None:
                raise ValueError(
                    f"the batch has no {self.labels!r}, only {', '.join(map(str, batch))}: name "
                    "the column so, or give labels=."
                )
            if self.shifts:
                raise ValueError(
                    f"'labels' of a {type(self.model).__name__} are the tokens themselves, which "
                    "its own loss shifts: give a column with the token after each position, and "
                    "its name as labels=."
                )
            labels = batch[self.labels]
            output = self.model(**{k: v for k, v in batch.items() if k != self.labels})
        elif isinstance(batch, list | tuple) and len(batch) == 2:
            labels, output = batch[1], self.model(batch[0])
        else:
            raise TypeError(
                f"a batch is a {type(batch).__name__}: mappings with {self.labels!r}, or pairs of "
                "an input and labels are needed."
            )
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels are a {type(labels).__name__}: a tensor is needed.")
        logits: Any = output["logits"] if isinstance(output, Mapping) else output
        return labels, logits[0] if isinstance(logits, tuple) else logits

    def _check(self, name: str, output: Tensor, logits: Tensor) -> None:
        if self.name not in (None, name):
            raise ValueError(
                f"the last linear layer called was {self.name!r} and is now {name!r}: give head=."
            )
        weight = self.candidates[name].weight
        owners = [
            owner
            for owner, module in self.model.named_modules()
            if any(one is weight for one in module._parameters.values())
        ]
        if len(owners) > 1:
            raise ValueError(
                f"{' and '.join(owners)} have one weight, of which a fit would change both: give "
                "the output layer one of its own first."
            )
        # looked at once; a last layer need not be called last
        if self.name is None and (
            output.shape != logits.shape
            or not torch.allclose(output.float(), logits.float(), 1e-2, 1e-3, equal_nan=True)
        ):
            raise ValueError(
                f"the logits, of shape {tuple(logits.shape)}, are not what the layer {name!r} puts "
                f"out, of shape {tuple(output.shape)}: a model with something after its output "
                "layer, such as the choice of a position, has no closed form. Give head= if it is "
                "another layer."
            )


def targets_of(z: Tensor, labels: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """What squared error is taken of.

    Args:
        z: (..., M), the inputs of an output layer, or anything in their place.
        labels: (...,) classes, of which -100 does not count, or (..., C) targets.
        outputs: C.

    Returns:
        The N rows that count, (N, M), their targets, (N, C), and their classes, (N,), or None where
        there are none.

    Raises:
        ValueError: another shape, or a label that is no class.
    """
    lead = z.shape[:-1]
    rows = z.reshape(-1, z.shape[-1])
    if labels.shape == (*lead, outputs) or (labels.shape == lead and outputs == 1):
        return rows, labels.reshape(len(rows), outputs), None
    if labels.shape != lead or labels.is_floating_point():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not go with features of "
            f"shape {tuple(z.shape)} and {outputs} outputs: whole numbers {tuple(lead)} or targets "
            f"{(*lead, outputs)} are needed."
        )
    flat = labels.reshape(-1).long()
    keep = flat != IGNORED
    rows, flat = rows[keep], flat[keep]
    wrong = (flat < 0) | (flat >= outputs)
    if wrong.any():
        raise ValueError(
            f"label {int(flat[wrong][0])} is none of the {outputs} classes 0 to {outputs - 1}."
        )
    return rows, F.one_hot(flat, outputs), flat
