"""The loss of a language model inside its forward pass, without the logits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.losses import SoftextLoss
from hf_softext.losses.linear import can_fuse, loss_of_linear
from hf_softext.training.problem import bare, is_causal


class FusedHead:
    """Has a model return its loss instead of its logits, while it is `active`.

    The output layer hands its input over instead of multiplying it, and the loss is computed
    before the model's forward pass ends, so that wrappers for several processes see the output
    layer's weight used where they expect it.

    Args:
        model: the model, not yet wrapped.
        loss: what to compute.
        required: whether a model that it does not work for is an error, and not a warning.
    """

    def __init__(self, model: nn.Module, loss: SoftextLoss, required: bool = False):
        self.required = required
        self.model: Any = bare(model)
        self.loss = loss
        self.head: Any = getattr(self.model, "get_output_embeddings", lambda: None)()
        config = getattr(self.model, "config", None)
        text = config.get_text_config() if config is not None else None
        self.softcap = getattr(text, "final_logit_softcapping", None)
        # Cohere's, Granite's
        self.scale = getattr(text, "logit_scale", None) or 1.0
        self.scale /= getattr(text, "logits_scaling", None) or 1.0
        self._hidden: Tensor | None = None
        self._autocast: Any = None
        self._given: dict[str, Any] | None = None
        self._verified = False
        self._whole = True
        self._hook: Any = None

    def attach(self) -> "FusedHead":
        """Take part in the model's forward passes."""
        self._hook = self.model.register_forward_hook(self._finish)
        return self

    def refuse(self, problem: str) -> None:
        """Take no part any more, for a reason that is said.

        Raises:
            ValueError: the loss was to be fused at any price.
        """
        self._hook.remove()
        if self.required:
            raise ValueError(f"fused='on': {problem}.")
        warnings.warn(f"The loss is computed from the logits: {problem}.", stacklevel=3)

    def problem(self) -> str | None:
        """Why the logits are needed; None where they are not."""
        if not can_fuse(self.loss):
            return f"the loss {self.loss.name!r} is not a sum over tokens of the logits alone"
        config = getattr(self.model, "config", None)
        if not is_causal(self.model) and not getattr(config, "is_encoder_decoder", False):
            return f"{type(self.model).__name__} is no causal language model"
        if type(self.head) is not nn.Linear:
            return f"the output layer is a {type(self.head).__name__}, not a plain Linear"
        return None

    @property
    def worth_it(self) -> bool:
        """Whether the logits are larger than what they are computed from."""
        return self.head.out_features > self.head.in_features

    def differs(self, model: nn.Module, inputs: dict[str, Any]) -> str | None:
        """Why the model's logits are not what is computed here; None where they are.

        Looked at once, on the first batch: models scale, cap or shift logits in ways of their own.
        """
        if self._verified:
            return None
        found: list[Tensor] = []
        hook = self.head.register_forward_hook(
            lambda _, given, made: found.extend((given[0], made))
        )
        try:
            devices = [inputs_device] if (inputs_device := self._cuda()) is not None else []
            # dropout draws from the same numbers afterwards
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                logits = model(**inputs)["logits"].detach()
        finally:
            hook.remove()
        if len(found) != 2 or found[0].shape[:-1] != logits.shape[:-1]:
            return "the output layer is not called once for all positions"
        if not self._whole:
            return "the output layer's weight lies in pieces on several processes when it is needed"
        weight = self.head.weight
        if hasattr(weight, "full_tensor"):
            self._verified = True
            return None
        hidden = found[0].reshape(-1, found[0].shape[-1])[:64]
        expected = nn.functional.linear(hidden, weight.to(hidden.dtype), self.head.bias)
        expected = expected.float() * self.scale
        if self.softcap is not None:
            expected = self.softcap * torch.tanh(expected / self.softcap)
        actual = logits.reshape(-1, logits.shape[-1])[:64].float()
        # under autocast the layer's output is in half precision
        full = hidden.dtype == found[1].dtype == torch.float32
        tolerance = 1e-4 if full else 3e-2
        scale = expected.abs().max().clamp(min=1.0)
        if actual.shape != expected.shape or (actual - expected).abs().max() > tolerance * scale:
            return (
                f"{type(self.model).__name__} does more to its logits than its output layer, "
                "`logit_scale`, `logits_scaling` and `final_logit_softcapping` of its config say"
            )
        self._verified = True
        return None

    def _cuda(self) -> int | None:
        device = self.head.weight.device
        return device.index if device.type == "cuda" else None

    @contextmanager
    def active(self, labels: Tensor, **given: Any) -> Iterator[None]:
        """Within, the model returns `loss` and no logits.

        Args:
            labels: (B, L), each in the place of the position that it is the label of.
            **given: `num_items` and `sample_weight` of the loss.
        """
        self._given = {"labels": labels, **given}
        self.head.forward = self._catch
        try:
            yield
        finally:
            del self.head.forward
            self._given = self._hidden = None

    def _catch(self, hidden: Tensor) -> Tensor:
        self._hidden = hidden
        device = hidden.device.type
        # which ends before the hook that computes the loss
        self._autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        # something for the model to cap and scale; a copy, as FSDP wants no views of its inputs
        return hidden[..., :1].clone()

    def _finish(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        # a wrapper for several processes may have taken it apart again
        self._whole = not hasattr(self.head.weight, "full_tensor")
        if self._given is None or self._hidden is None:
            return None
        given = dict(self._given)
        with self._autocast:
            loss = loss_of_linear(
                self.loss,
                self._hidden,
                self.head.weight,
                given.pop("labels"),
                bias=self.head.bias,
                scale=self.scale,
                softcap=self.softcap,
                **given,
            )
        rest = {name: value for name, value in output.items() if name not in ("loss", "logits")}
        return type(output)(loss=loss, **rest)
