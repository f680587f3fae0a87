"""SOFT and SOFT++ as transformers calls them, for their tests."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_softext.attention.soft import SOFT, SOFT_NORM, GaussianAttention

both = pytest.mark.parametrize("method", [SOFT, SOFT_NORM], ids=lambda method: method.name)


def module(method: GaussianAttention, **parameters: Any) -> Any:
    block = {"attention": method.name, "mode": "low_rank", **parameters}
    config = SimpleNamespace(is_decoder=False, softext=block)
    return SimpleNamespace(training=False, config=config)


def low_rank(
    method: GaussianAttention,
    query: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    key: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """Output (B, N, H, Dv); one tensor is query and key unless there is another."""
    key = query if key is None else key
    return method.forward(module(method, **parameters), query, key, value, mask)[0]


def tensors(count: int, batch: int = 2, dim: int = 6, value_dim: int = 5) -> tuple[Tensor, Tensor]:
    """Tokens and values for 3 heads, float64."""
    query, value = torch.randn(batch, 3, count, dim), torch.randn(batch, 3, count, value_dim)
    return query.double(), value.double()
