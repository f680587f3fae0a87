"""Every form in which models state what a query may see, brought to one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# an additive mask hides a key where it is below this. models write -100 (Swin, CLAP), -1e4 or the
# dtype's minimum; slow-tailed weights such as StableMax's would give such a key a share, so hidden
# means hidden
HIDDEN_BELOW = -50.0


@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees, and what is added to the scores.

    Attributes:
        queries: Q.
        keys: K.
        device: of the tensors.
        keep: bool, broadcastable to (B, H, Q, K) with K written out; None where no mask was given.
        causal: what a missing `keep` means: query i sees keys 0 to i, or every key.
        bias: floating point, broadcastable to (B, H, Q, K), or None.
    """

    queries: int
    keys: int
    device: torch.device
    keep: Tensor | None
    causal: bool
    bias: Tensor | None = None

    def dense(self) -> Tensor:
        """`keep` as a tensor, whether it was given or not."""
        if self.keep is not None:
            return self.keep
        if not self.causal:
            return torch.ones(1, 1, 1, self.keys, dtype=torch.bool, device=self.device)
        position = torch.arange(max(self.queries, self.keys), device=self.device)
        return (position[: self.queries, None] >= position[None, : self.keys])[None, None]

    def count(self) -> Tensor:
        """The number of visible keys, broadcastable to (B, H, Q, 1)."""
        if self.keep is not None:
            return self.keep.sum(dim=-1, keepdim=True)
        if not self.causal:
            return torch.full((1, 1, 1, 1), self.keys, device=self.device)
        return torch.arange(1, self.queries + 1, device=self.device).clamp(max=self.keys)[:, None]


def visibility(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Visibility:
    """Read a mask of any form.

    Args:
        mask: None, bool (True is visible) or float (added; below -50 it hides), broadcastable to
            (B, H, Q, K).
        query: (B, H, Q, D).
        key: (B, G, K, D).
        causal: what a missing mask means. A single query sees every key.

    Raises:
        ValueError: an integer mask: 0/1 and additive cannot be told apart.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        return Visibility(queries, keys, query.device, None, causal and queries > 1)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"attention_mask of dtype {mask.dtype} and {mask.dim()} dimensions is ambiguous: pass "
            f"bool (True is visible) or float (added to the scores)."
        )
    mask = mask.expand(*mask.shape[:-1], keys)
    if mask.dtype == torch.bool:
        return Visibility(queries, keys, query.device, mask, False)
    keep = ~(mask < HIDDEN_BELOW)
    return Visibility(queries, keys, query.device, keep, False, mask.masked_fill(~keep, 0.0))


def resolve_causal(module: nn.Module, config: Any, is_causal: bool | None) -> bool:
    """What a missing mask means: the argument, else the module, else its config's `is_decoder`."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", None)
    return bool(getattr(config, "is_decoder", False) if is_causal is None else is_causal)
