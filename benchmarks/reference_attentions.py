"""Attentions to compare with that are no methods of this package, as the literature writes them.

With s the scores scaled by the model (D^-1/2), N the number of keys that a row sees:

- `sigmoid_plain`: sigmoid(s - log N), rows do not sum to 1. Ramapuram et al. 2024 (arXiv
  2409.04431) have the constant bias -log n for the one length n that they train and test at.
- `relu_plain`: relu(s) / N. Wortsman et al. 2023 (arXiv 2309.08586), with the visible keys for
  their sequence length.
- `sigmoid_l1`, `relu_l1`: sigmoid(s) and relu(s) divided by their sum over the row, which is what
  the softplus paper does with softplus.

The rows "sigmoid" and "ReLU" in the table of the softplus paper (arXiv 2501.13428) are not
normalised; their scale and bias are not known to us, so ours need not be the same.
"""

import torch
from torch import Tensor

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.parameters import Number


def _over_sum(weights: Tensor, keep: Tensor) -> Tensor:
    weights = weights.masked_fill(~keep, 0.0)
    # a row of ReLU may be 0 throughout
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)


def sigmoid_l1(scores: Tensor, keep: Tensor) -> Tensor:
    """sigmoid(s) / sum."""
    return _over_sum(scores.sigmoid(), keep)


def relu_l1(scores: Tensor, keep: Tensor) -> Tensor:
    """relu(s) / sum."""
    return _over_sum(scores.relu(), keep)


def sigmoid_plain(scores: Tensor, keep: Tensor) -> Tensor:
    """sigmoid(s - log N)."""
    visible = keep.sum(dim=-1, keepdim=True).clamp(min=1).to(scores.dtype)
    return torch.sigmoid(scores - visible.log()).masked_fill(~keep, 0.0)


def relu_plain(scores: Tensor, keep: Tensor) -> Tensor:
    """relu(s) / N."""
    visible = keep.sum(dim=-1, keepdim=True).clamp(min=1).to(scores.dtype)
    return (scores.relu() / visible).masked_fill(~keep, 0.0)


REFERENCES = tuple(
    AttentionMethod(
        name=weights.__name__,
        weights=weights,
        cosine=False,
        parameters={"scale": Number(default=None, low=0, high=1e4, above_low=True)},
    )
    for weights in (sigmoid_l1, relu_l1, sigmoid_plain, relu_plain)
)
