"""The attention methods under test, each with a reference that shares no code with the package.

A new method is one more row; every common test then runs on it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One method.

    Attributes:
        name: its name in the catalogue.
        row: the weights of the visible scores of one query, as the paper writes them.
        cosine: whether scores are cosines times the logarithm of the number of visible keys.
        gaussian: whether scores are minus half the scaled squared distances of query and key. Such
            a method has nothing that a soft-cap could cap, and it runs on torch's fused softmax,
            where a NaN in a key reaches queries that do not see it.
        normalized: whether the weights of a row sum to 1.
        scaling: a model's factor with which weights at head dim 60 are of every size.
        defaults: every parameter that `row` takes, at its default.
        other: a non-default set, `scale` included.
    """

    name: str
    row: Callable[..., Tensor]
    cosine: bool = False
    gaussian: bool = False
    normalized: bool = True
    scaling: float = 0.3
    defaults: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)


def softplus_row(scores: Tensor) -> Tensor:
    """softplus(s) over its sum."""
    positive = torch.log1p(torch.exp(scores))
    return positive / positive.sum()


def reweighted_row(
    scores: Tensor, power: float, shift: float, free_rows: int, degenerate: str
) -> Tensor:
    """ReLU(N a - O)^p over its sum, divided by the largest so that the power cannot overflow."""
    weights = softplus_row(scores)
    count = len(scores)
    excess = torch.relu(count * weights - (shift if count > free_rows else 0.0))
    largest = excess.max().detach()
    if largest <= 1e-14:
        return weights if degenerate == "softplus" else weights * 0.0
    powered = (excess / largest) ** power
    return powered / powered.sum()


def stablemax_row(scores: Tensor) -> Tensor:
    """s(z) over its sum, with s(z) = z + 1 above 0 and 1 / (1 - z) below."""
    positive = torch.stack([z + 1 if z >= 0 else 1 / (1 - z) for z in scores])
    return positive / positive.sum()


def kernel_row(exponents: Tensor, **_: Any) -> Tensor:
    """The kernel itself."""
    return torch.exp(exponents)


def normalized_kernel_row(exponents: Tensor, **_: Any) -> Tensor:
    """The kernel over its sum, relative to the largest."""
    positive = torch.exp(exponents - exponents.max())
    return positive / positive.sum()


SOFT = {"mode": "exact", "landmarks": 49, "iterations": 20, "tie": "error"}
CASES = [
    Case("softplus", softplus_row, cosine=True, other={"scale": 2.5}),
    Case(
        "softplus_reweighted",
        reweighted_row,
        cosine=True,
        defaults={"power": 15.0, "shift": 1.0, "free_rows": 3, "degenerate": "softplus"},
        other={"scale": 2.5, "power": 3, "shift": 0.5, "free_rows": 6, "degenerate": "zero"},
    ),
    Case("stablemax", stablemax_row, other={"scale": 0.7}),
    Case(
        "soft",
        kernel_row,
        gaussian=True,
        normalized=False,
        scaling=0.02,
        defaults=SOFT | {"grid": None},
        other=SOFT | {"scale": 0.05},
    ),
    Case(
        "soft_norm",
        normalized_kernel_row,
        gaussian=True,
        defaults=SOFT | {"grid": None},
        other=SOFT | {"scale": 0.05},
    ),
]
NAMES = [case.name for case in CASES]


def reference(
    case: Case,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    """Attention one query at a time, in the dtype of the inputs.

    `keep` and `bias` are (B, H, Q, K) or broadcast to it.

    Returns:
        Output (B, Q, H, Dv) and weights (B, H, Q, K).
    """
    batch, heads, queries, dim = query.shape
    groups = heads // key.shape[1]
    shape = (batch, heads, queries, key.shape[2])
    keep = keep.expand(shape)
    parameters = case.defaults | parameters
    weights = torch.zeros(shape, dtype=query.dtype)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).tolist():
        seen = keep[b, h, i].nonzero()[:, 0]
        if len(seen) == 0:
            continue
        q, k = query[b, h, i], key[b, h // groups][seen]
        factor = next(x for x in (scale, scaling, dim**-0.5) if x is not None)
        if case.cosine:
            cosines = (k @ q) / (k.norm(dim=-1) * q.norm())
            scores = cosines * math.log(len(seen)) * (math.log(dim) if scale is None else scale)
        elif case.gaussian:
            scores = -0.5 * factor * (q - k).square().sum(-1)
        else:
            scores = (k @ q) * factor
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias.expand(shape)[b, h, i][seen]
        weights = weights.index_put(
            (torch.tensor(b), torch.tensor(h), torch.tensor(i), seen),
            case.row(scores, **parameters),
        )
    values = value.repeat_interleave(groups, dim=1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, values), weights
