"""Attention that turns each row of scores into a row of weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.attention._base import BaseAttention, Call
from hf_softext.functional import chunked_attention, fused_attention
from hf_softext.functional.fused_attention import fuses


@dataclass(frozen=True)
class AttentionMethod(BaseAttention):
    r"""An attention method: how scores become weights, and whether the scores are cosines.

    Scores, before soft-cap, bias and mask, with D the head dim and $N_i$ the number of keys
    visible to query i:

    - dot products, $s_{ij} = c\,\langle q_i, k_j\rangle$, with $c$ = `scale`, else the model's
      scaling, else $D^{-1/2}$;
    - cosines, $s_{ij} = c\,\log N_i\,\cos(q_i, k_j)$, with $c$ = `scale`, else $\log D$; the
      model's scaling is not used.

    Attributes:
        weights: `weights(scores, keep, **parameters)`: (B, H, Q, K) float32 or float64 scores and
            a broadcastable bool `keep` to weights that are 0 where hidden and rows that sum to 1
            (or 0 if nothing is visible).
        cosine: which of the two scores.
        row_map: the name in `hf_softext.functional.row_maps` of the same map with its derivative
            in closed form, which needs memory for a few rows at a time; None computes the whole
            matrix. The map takes the parameters that are numbers, in the order of `parameters`.
    """

    weights: Callable[..., Tensor]
    cosine: bool
    row_map: str | None = None

    def check_head_dim(self, head_dim: int, parameters: dict[str, Any]) -> None:
        """Raise ValueError where the default scale log(D) of cosine scores would be 0."""
        if self.cosine and parameters["scale"] is None and head_dim < 2:
            raise ValueError(
                f"{self.name!r} scales scores by log(head dim), which is not positive for head dim "
                f"{head_dim}: give `scale`, or use a head dim of 2 or more."
            )

    def attend(self, call: Call, parameters: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Output and weights; see the base class."""
        options = dict(parameters)
        query, key = self._scaled(call, options.pop("scale"))
        value = call.value.to(call.wide)
        if self.row_map is None or call.weights:
            return self._whole(call, query, key, value, options)
        how = {
            "row_map": self.row_map,
            "options": options,
            "bias": call.bias(),
            "softcap": call.softcap,
        }
        if call.dropout == 0 and fuses(call.query, call.value):
            # the kernel sums in float32 whatever the inputs are
            narrow = (x.to(call.query.dtype) for x in (query, key, value))
            return fused_attention(*narrow, keep=call.visible.dense(), **how), None
        masks = {"keep": call.visible.keep, "causal": call.visible.causal}
        return chunked_attention(query, key, value, dropout=call.dropout, **masks, **how), None

    def _whole(
        self, call: Call, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores, bias = torch.matmul(query, key.transpose(-1, -2)), call.bias()
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        if bias is not None:
            scores = scores + bias
        weights = F.dropout(self.weights(scores, call.visible.dense(), **options), p=call.dropout)
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights

    def _scaled(self, call: Call, scale: float | None) -> tuple[Tensor, Tensor]:
        """Query and key whose dot products are the scores."""
        query, key = call.query.to(call.wide), call.key.to(call.wide)
        head_dim = query.shape[-1]
        if not self.cosine:
            factor = next(x for x in (scale, call.scaling, head_dim**-0.5) if x is not None)
            return query * factor, key
        visible = call.visible.count().clamp(min=1).to(call.wide)
        factor = math.log(head_dim) if scale is None else scale
        return unit(query) * (factor * visible.log()), unit(key)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; below 1e-12 they and their gradient are 0."""
    squared = vectors.square().sum(dim=-1, keepdim=True)
    usable = ~(squared <= 1e-24)
    return vectors * torch.where(usable, squared, 1.0).rsqrt() * usable
