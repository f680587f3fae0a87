"""An attack on the input of a model: on the embeddings of tokens, or on pixels."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.functional.projected_ascent import projected_ascent
from hf_softext.training.problem import bare

# the model's own words for inputs that are numbers already win over its main input
EMBEDDED = "inputs_embeds"


class InputAttack:
    """Finds what to add to the input of a model, and runs the model with it.

    Token ids are attacked in the output of the embedding layer, each token for itself; the model
    is still given the ids, from which it may tell where a text ends. Tokens that `attention_mask`
    hides stay as they are. Of an image, or another input of numbers, a row is attacked as a whole.

    Args:
        model: the model, not yet wrapped for several processes.
        steps: of the ascent.
        size: radius of the ball.
        step_size: length of a step; by default 2.5 times the radius, divided by the steps.
        norm: "l2" or "linf".
        seed: of where attacks start.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        size: float,
        step_size: float | None = None,
        norm: str = "l2",
        seed: int = 0,
    ):
        self.model: Any = bare(model)
        self.steps = steps
        self.size = size
        self.step_size = 2.5 * size / steps if step_size is None else step_size
        self.norm = norm
        self.seed = seed

    def find(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        objective: Callable[[Tensor, Tensor], Tensor],
        rows: list[str],
    ) -> Tensor:
        """The perturbation.

        The model is in evaluation mode meanwhile, and its parameters get no gradient.

        Args:
            model: the model itself, without what wraps it for several processes.
            inputs: of its forward pass.
            objective: a sum over rows to make large, of the logits and the perturbed ones.
            rows: a name for each row, which decides where its attack starts, whatever other rows
                there are.

        Returns:
            (B, L, D) for embeddings; otherwise the shape of the input. float32.

        Raises:
            ValueError: the model has no such input, or does not pass its ids through the layer
                that `get_input_embeddings` names, once.
        """
        with _evaluating(model):
            with torch.no_grad():
                like, logits = self._look(model, inputs)
            tokens = self._through_ids(inputs) or self._name(inputs) == EMBEDDED
            dims = (-1,) if tokens else tuple(range(1, like.dim()))
            mask = self._mask(inputs, like) if tokens else torch.ones((), device=like.device)

            def ascended(delta: Tensor) -> Tensor:
                perturbed = self.forward(model, inputs, delta * mask)["logits"]
                return objective(logits, perturbed)

            found = projected_ascent(
                ascended,
                self._start(like, rows, dims) * mask,
                size=self.size,
                steps=self.steps,
                step_size=self.step_size,
                norm=self.norm,
                dims=dims,
            )
        return found

    def forward(self, model: nn.Module, inputs: Mapping[str, Any], delta: Tensor) -> Any:
        """What a model, wrapped or not, makes of the perturbed input."""
        if self._through_ids(inputs):
            with self._embeddings(lambda value: value + delta.to(value.dtype)):
                return model(**inputs)
        name = self._name(inputs)
        return model(**{**inputs, name: inputs[name] + delta.to(inputs[name].dtype)})

    def _name(self, inputs: Mapping[str, Any]) -> str:
        main = getattr(self.model, "main_input_name", "input_ids")
        name = EMBEDDED if inputs.get(EMBEDDED) is not None else main
        if inputs.get(name) is None:
            raise ValueError(f"the batch has no {name!r} to attack, only {', '.join(inputs)}.")
        return name

    def _through_ids(self, inputs: Mapping[str, Any]) -> bool:
        return not inputs[self._name(inputs)].is_floating_point()

    def _look(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What is to be perturbed, and the logits without."""
        name = self._name(inputs)
        if not self._through_ids(inputs):
            return inputs[name], model(**inputs)["logits"]
        with self._embeddings(lambda value: value) as seen:
            logits = model(**inputs)["logits"]
        if len(seen) != 1 or seen[0].shape[:-1] != inputs[name].shape:
            raise ValueError(
                f"{type(self.model).__name__} does not pass {name!r} through its input embeddings "
                f"once, but calls them {len(seen)} times: its input cannot be attacked."
            )
        return seen[0], logits

    @contextmanager
    def _embeddings(self, change: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
        """Within, what the embedding layer returns is changed, and kept in the list."""
        seen: list[Tensor] = []

        def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            seen.append(output)
            return change(output)

        handle = self.model.get_input_embeddings().register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def _mask(self, inputs: Mapping[str, Any], like: Tensor) -> Tensor:
        mask = inputs.get("attention_mask")
        if mask is None:
            return torch.ones((), device=like.device)
        if mask.shape != like.shape[:2]:
            raise ValueError(
                f"attention_mask of shape {tuple(mask.shape)} does not say which of the "
                f"{tuple(like.shape[:2])} inputs is padding: leave it out or give it this shape."
            )
        return mask.to(like.device)[..., None].float()

    def _start(self, like: Tensor, rows: list[str], dims: tuple[int, ...]) -> Tensor:
        """A point drawn for each row alone: not at the input, where a derivative may be 0."""
        drawn = []
        for row in rows:
            key = random.Random(f"attack {self.seed} {row}").getrandbits(63)
            generator = torch.Generator(like.device).manual_seed(key)
            shape = like.shape[1:]
            drawn.append(torch.rand(shape, generator=generator, device=like.device) * 2 - 1)
        noise = torch.stack(drawn)
        if self.norm == "linf":
            return noise * self.size
        # on the sphere
        return noise * (self.size / torch.linalg.vector_norm(noise, dim=dims, keepdim=True))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within, no part of the model is in training mode; afterwards each is in its own again."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
