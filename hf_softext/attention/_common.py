"""The adapter between transformers' attention slot and a method."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_softext.attention.parameters import Parameters, resolve
from hf_softext.attention.record import block_parameters, record_use

# an additive mask hides a key where it is below this. models write -100 (Swin, CLAP), -1e4 or the
# dtype's minimum; slow-tailed weights such as StableMax's would give such a key a share, so hidden
# means hidden
HIDDEN_BELOW = -50.0

# arguments that change what a model computes and that no method here can honour
_REFUSED = ("s_aux", "sinks", "indices", "block_indices", "cache")

# called with the module at every use; `verify_attention` listens here
OBSERVERS: list[Callable[[nn.Module], None]] = []


@dataclass(frozen=True)
class AttentionMethod:
    r"""An attention method: how scores become weights, and whether the scores are cosines.

    Scores, before soft-cap, bias and mask, with D the head dim and $N_i$ the number of keys
    visible to query i:

    - dot products, $s_{ij} = c\,\langle q_i, k_j\rangle$, with $c$ = `scale`, else the model's
      scaling, else $D^{-1/2}$;
    - cosines, $s_{ij} = c\,\log N_i\,\cos(q_i, k_j)$, with $c$ = `scale`, else $\log D$; the
      model's scaling is not used.

    Attributes:
        name: the name in the registry.
        weights: `weights(scores, keep, **parameters)`: (B, H, Q, K) float32 or float64 scores and
            a broadcastable bool `keep` to weights that are 0 where hidden and rows that sum to 1
            (or 0 if nothing is visible).
        cosine: which of the two scores.
        parameters: what `config.softext` may say; always has `scale`, the rest goes to `weights`.
        start: for a method that is hard to learn as it is, the values from which adoption eases
            its parameters in.
    """

    name: str
    weights: Callable[..., Tensor]
    cosine: bool
    parameters: Parameters = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)

    def resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Validated parameters; raises ValueError for an unknown name or a value out of range."""
        return resolve(self.name, self.parameters, given)

    def check_head_dim(self, head_dim: int, scale: float | None) -> None:
        """Raise ValueError where the default scale log(D) of cosine scores would be 0."""
        if self.cosine and scale is None and head_dim < 2:
            raise ValueError(
                f"{self.name!r} scales scores by log(head dim), which is not positive for head dim "
                f"{head_dim}: give `scale`, or use a head dim of 2 or more."
            )

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
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
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
            **kwargs: what else models pass along; informational, except for the arguments that are
                refused.

        Returns:
            Output (B, Q, H, Dv), contiguous, and weights (B, H, Q, K), both in the dtype of
            `query`.

        Raises:
            NotImplementedError: an argument that would change the model and is not supported.
            ValueError: a bad `config.softext`, an integer mask, or head dim 1 with cosine scores.

        Notes:
            Scores and weights are computed in float32 (float64 for float64 inputs), also under
            autocast. A NaN in a key reaches only the rows that see the key; a NaN in a value
            reaches every row, as a weight of 0 times NaN is NaN.
        """
        for name in _REFUSED:
            if kwargs.get(name) is not None:
                raise NotImplementedError(
                    f"attn_implementation={self.name!r} does not support the argument `{name}` "
                    f"that {type(module).__name__} passes; without it the model would compute "
                    f'something else. Use attn_implementation="eager" for this model.'
                )
        for observer in OBSERVERS:
            observer(module)
        config = getattr(module, "config", None)
        parameters = self.resolve(block_parameters(config, self.name))
        record_use(config, self.name, parameters)
        scale = parameters.pop("scale")
        self.check_head_dim(query.shape[-1], scale)

        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        with _without_autocast(query.device.type):
            keep, bias = visibility(attention_mask, query, key, _causal(module, config, is_causal))
            scores = self._scores(query.to(wide), key.to(wide), keep, scale, scaling)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            for addend in (bias, position_bias):
                if addend is not None:
                    scores = scores + addend.to(wide)
            weights = self.weights(scores, keep, **parameters).to(value.dtype)
            weights = F.dropout(weights, p=dropout, training=module.training)
            output = torch.matmul(weights, value)
        return output.transpose(1, 2).contiguous().to(query.dtype), weights.to(query.dtype)

    def _scores(
        self, query: Tensor, key: Tensor, keep: Tensor, scale: float | None, scaling: float | None
    ) -> Tensor:
        head_dim = query.shape[-1]
        if not self.cosine:
            factor = next((x for x in (scale, scaling) if x is not None), head_dim**-0.5)
            return torch.matmul(query * factor, key.transpose(-1, -2))
        visible = keep.sum(dim=-1, keepdim=True).clamp(min=1).to(query.dtype)
        factor = math.log(head_dim) if scale is None else scale
        return torch.matmul(unit(query), unit(key).transpose(-1, -2)) * (factor * visible.log())


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; below 1e-12 they and their gradient are 0."""
    squared = vectors.square().sum(dim=-1, keepdim=True)
    usable = ~(squared <= 1e-24)
    return vectors * torch.where(usable, squared, 1.0).rsqrt() * usable


def visibility(
    mask: Tensor | None, query: Tensor, key: Tensor, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Which keys a query sees, and what is added to the scores, from any form of mask.

    Args:
        mask: None, bool or float, broadcastable to (B, H, Q, K).
        query: (B, H, Q, D).
        key: (B, H, K, D).
        causal: what a missing mask means.

    Returns:
        `keep`, bool with last dimension K, broadcastable to (B, H, Q, K), and the additive bias or
        None.

    Raises:
        ValueError: an integer mask: 0/1 and additive cannot be told apart.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if not causal or queries == 1:
            return torch.ones(1, 1, 1, keys, dtype=torch.bool, device=query.device), None
        position = torch.arange(max(queries, keys), device=query.device)
        return (position[:queries, None] >= position[None, :keys])[None, None], None
    if mask.dtype == torch.bool:
        return mask.expand(*mask.shape[:-1], keys), None
    if not mask.is_floating_point():
        raise ValueError(
            f"attention_mask of dtype {mask.dtype} and {mask.dim()} dimensions is ambiguous: pass "
            f"bool (True is visible) or float (added to the scores)."
        )
    mask = mask.expand(*mask.shape[:-1], keys)
    keep = ~(mask < HIDDEN_BELOW)
    return keep, mask.masked_fill(~keep, 0.0)


def _causal(module: nn.Module, config: Any, is_causal: bool | None) -> bool:
    if is_causal is None:
        is_causal = getattr(module, "is_causal", None)
    return bool(getattr(config, "is_decoder", False) if is_causal is None else is_causal)


def _without_autocast(device_type: str) -> AbstractContextManager:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
