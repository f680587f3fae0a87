"""What every attention method does when transformers calls it, whatever it computes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.attention._mask import Visibility, resolve_causal, visibility
from hf_softext.attention.parameters import Parameters, resolve
from hf_softext.attention.record import block_parameters, record_use
from hf_softext.functional.without_autocast import without_autocast

# arguments that change what a model computes and that no method here can honour
_REFUSED = ("s_aux", "sinks", "indices", "block_indices", "cache")

# called with the module at every use; `verify_attention` listens here
OBSERVERS: list[Callable[[nn.Module], None]] = []

# asked at every use whether somebody records attention weights; registration adds transformers'
# own recorder, which some models (GPT-2) do not announce by an argument
RECORDERS: list[Callable[[], bool]] = []


@dataclass(frozen=True)
class Call:
    """One call of an attention method, checked and in one form.

    Attributes:
        query: (B, H, Q, D), in the model's dtype.
        key: (B, G, K, D), H a multiple of G.
        value: (B, G, K, Dv).
        visible: which keys a query sees, with the bias that came in the mask.
        scaling: the model's factor on dot products, or None.
        softcap: c in s <- c tanh(s / c), or None.
        position_bias: added to the scores after the soft-cap, broadcastable to (B, H, Q, K), or
            None.
        dropout: probability with which a weight is dropped; 0 outside training.
        weights: whether the caller wants the weights too.
        wide: the dtype to compute in: float32, or float64 for float64 inputs.
        module: the attention module.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visible: Visibility
    scaling: float | None
    softcap: float | None
    position_bias: Tensor | None
    dropout: float
    weights: bool
    wide: torch.dtype
    module: nn.Module

    def bias(self) -> Tensor | None:
        """The sum of what is added to the scores, in `wide`."""
        given = (self.visible.bias, self.position_bias)
        addends = [x.to(self.wide) for x in given if x is not None]
        return sum(addends[1:], addends[0]) if addends else None


@dataclass(frozen=True)
class BaseAttention:
    """The part of an attention method that does not depend on what it computes.

    Attributes:
        name: the name in the registry.
        parameters: what `config.softext` may say.
        start: for a method that is hard to learn as it is, the values from which adoption eases
            its parameters in.
    """

    name: str
    parameters: Parameters = field(default_factory=dict, kw_only=True)
    start: dict[str, float] = field(default_factory=dict, kw_only=True)

    def resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Validated parameters; raises ValueError for an unknown name or a value out of range."""
        return resolve(self.name, self.parameters, given)

    def check_head_dim(self, head_dim: int, parameters: dict[str, Any]) -> None:
        """Raise ValueError where the method is not defined for a head dim."""

    def attend(self, call: Call, parameters: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Compute the output (B, Q, H, Dv), and the weights (B, H, Q, K) if they are wanted."""
        raise NotImplementedError(f"{type(self).__name__} has no `attend`.")

    def forward(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        softcap: float | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        r"""The function that transformers calls in place of softmax attention.

        Args:
            module: the model's attention module.
            query: (B, H, Q, D).
            key: (B, G, K, D), H a multiple of G.
            value: (B, G, K, Dv).
            attention_mask: None, bool (True is visible) or additive float, broadcastable to (B, H,
                Q, K). Additive values below -50 hide the key, the others are added to the scores.
            scaling: the model's factor on dot products.
            dropout: probability with which a weight is dropped, after normalisation, in training.
            is_causal: whether a missing mask means causal; else the module's `is_causal`, else its
                config's `is_decoder`. Query i then sees keys 0 to i; a single query sees every key.
            softcap: c in s <- c tanh(s / c), before biases and mask.
            position_bias: added to the scores, broadcastable to (B, H, Q, K).
            output_attentions: whether the weights are wanted. They need memory for the whole
                matrix. Where transformers records them without this argument (GPT-2), they come
                without dropout and without a gradient.
            **kwargs: what else models pass along; informational, except for the arguments that are
                refused.

        Returns:
            Output (B, Q, H, Dv), contiguous, and weights (B, H, Q, K) or None, in the dtype of
            `query`.

        Raises:
            NotImplementedError: an argument that would change the model and is not supported.
            ValueError: a bad `config.softext`, an integer mask, batch sizes that differ, or a head
                dim for which the method is not defined.

        Notes:
            Scores and weights are computed in float32 (float64 for float64 inputs), also under
            autocast. A NaN in a key reaches the rows that see the key (every row of its sequence
            under the Gaussian methods); a NaN in a value may reach every row, as a weight of 0
            times NaN is NaN.
        """
        for argument in _REFUSED:
            if kwargs.get(argument) is not None:
                raise NotImplementedError(
                    f"attn_implementation={self.name!r} does not support the argument `{argument}` "
                    f"that {type(module).__name__} passes; without it the model would compute "
                    f'something else. Use attn_implementation="eager" for this model.'
                )
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            raise ValueError(
                f"query, key and value of {type(module).__name__} have batch sizes "
                f"{query.shape[0]}, {key.shape[0]} and {value.shape[0]}: they must be equal."
            )
        for observer in OBSERVERS:
            observer(module)
        config = getattr(module, "config", None)
        parameters = self.resolve(block_parameters(config, self.name))
        record_use(config, self.name, parameters)
        self.check_head_dim(query.shape[-1], parameters)
        with without_autocast(query):
            call = Call(
                query=query,
                key=key,
                value=value,
                visible=visibility(
                    attention_mask, query, key, resolve_causal(module, config, is_causal)
                ),
                scaling=scaling,
                softcap=softcap,
                position_bias=position_bias,
                dropout=dropout if module.training else 0.0,
                weights=bool(output_attentions),
                wide=torch.float64 if query.dtype == torch.float64 else torch.float32,
                module=module,
            )
            output, weights = self.attend(call, parameters)
            if weights is None and any(asks() for asks in RECORDERS):
                # beside the output and not in its place: gradient checkpointing computes a layer
                # again when nobody records, and must find the same operations and random numbers
                with torch.no_grad():
                    _, weights = self.attend(replace(call, weights=True, dropout=0.0), parameters)
        return (
            output.to(query.dtype),
            None if weights is None else weights.to(query.dtype),
        )
