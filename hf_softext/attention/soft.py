r"""SOFT and SOFT++: a Gaussian kernel in the place of the softmax, exact or through landmarks.

With $c$ = `scale`, else the model's scaling, else $D^{-1/2}$:

- `soft`, exact: $O_i = \sum_j e^{-c\lVert q_i - k_j\rVert^2/2}\, v_j$. Rows of weights do not sum
  to 1: the output grows with the number of near keys, and in half precision it may overflow.
- `soft_norm`, exact: the same weights, each row divided by its sum.
- `soft`, low rank: $P A^+ P^\top V$ through M landmarks, time and memory O(N M).
- `soft_norm`, low rank: SOFT++, $P D^{-1/2} A^+ D^{-1/2} P^\top V$ with D the row sums of A.

SOFT++ normalises the landmarks' matrix, on both sides. That has no counterpart with all the keys
that would do for causal or cross attention, where the matrix is not symmetric: exact `soft_norm`
divides rows, and the two modes of `soft_norm` are different functions.

Reference:
    SOFT: J. Lu, J. Yao, J. Zhang, X. Zhu, H. Xu, W. Gao, C. Xu, T. Xiang, L. Zhang, "SOFT:
    Softmax-free Transformer with Linear Complexity", 2021, arXiv 2110.11945. SOFT++: J. Lu, J.
    Zhang, X. Zhu, J. Feng, T. Xiang, L. Zhang, "Softmax-free Linear Transformers", 2024, arXiv
    2207.03341. The exact modes, what masks mean and mean landmarks with padding are this package's.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.attention._base import BaseAttention, Call
from hf_softext.attention._low_rank import admit_tokens, refusal, unequal
from hf_softext.attention.parameters import Choice, Number, Pair
from hf_softext.attention.record import _warn_once
from hf_softext.functional.gaussian import gaussian_attention, gaussian_weights
from hf_softext.functional.landmarks import grid_landmarks, grid_segments, membership, segments
from hf_softext.functional.low_rank_gaussian import LowRank, low_rank_gaussian


@dataclass(frozen=True)
class GaussianAttention(BaseAttention):
    r"""A Gaussian kernel of query and key.

    Exact, it takes every mask, bias, cache and grouping of heads that softmax attention takes, and
    runs on torch's fused softmax kernels: a NaN in a key reaches every query of its sequence and
    group of heads there, also those that do not see the key. A bias is added to the exponent.

    Low rank, query and key have to be one, the tokens t: `tie` says how. Landmarks are means of
    `landmarks` runs of nearly equal length, or of square cells where `grid` gives the height and
    width of the tokens' grid; tokens before the grid (a class token, registers) are landmarks of
    their own. They are made of every token, so that only padding can be masked: a padding token
    has no weight and its own output is 0. Where every landmark is a single token the kernel is
    exact, as it is in a sequence no longer than the landmarks.

    Attributes:
        normalize: `soft_norm`.
        cosine: its scores are no cosines; `softext adopt` asks.
    """

    normalize: bool
    cosine: ClassVar[bool] = False

    def attend(self, call: Call, parameters: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Output and weights; see the base class.

        Raises:
            NotImplementedError: a soft-cap, as there is no score to cap.
            ValueError: a negative scale; in low-rank mode also what the class says cannot be, and
                dropout, as no weights are formed.
        """
        if call.softcap is not None:
            raise NotImplementedError(
                f"attn_implementation={self.name!r} cannot soft-cap (softcap={call.softcap}): a "
                f'Gaussian kernel has no score to cap. Use "stablemax" or "softplus", which can.'
            )
        given = (parameters["scale"], call.scaling, call.query.shape[-1] ** -0.5)
        factor = next(x for x in given if x is not None)
        if factor < 0:
            raise ValueError(
                f"{self.name!r} needs a scale of 0 or more, and the model's scaling is {factor}: "
                f"give `scale`."
            )
        query, key = (x.to(call.wide) * math.sqrt(factor) for x in (call.query, call.key))
        value = call.value.to(call.wide)
        if parameters["mode"] == "low_rank":
            return self._low_rank(call, query, key, value, parameters)
        return self._exact(call, query, key, value, call.visible.keep, call.bias())

    def _exact(
        self,
        call: Call,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keep: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if not call.weights:
            output = gaussian_attention(
                query,
                key,
                value,
                keep=keep,
                causal=call.visible.causal,
                bias=bias,
                dropout=call.dropout,
                normalize=self.normalize,
            )
            return output, None
        groups = query.shape[1] // max(1, key.shape[1])
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        shown = call.visible.dense() if keep is None else keep
        weights = gaussian_weights(query, key, shown, bias, self.normalize)
        weights = F.dropout(weights, p=call.dropout)
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights

    def _low_rank(
        self, call: Call, query: Tensor, key: Tensor, value: Tensor, parameters: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        valid = self._admit(call, parameters["tie"])
        groups = query.shape[1] // max(1, key.shape[1])
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        tokens = query if parameters["tie"] == "query" else 0.5 * (query + key)
        if valid is not None:
            # not even a NaN gets out of padding
            tokens, value = (x.masked_fill(~valid[:, None, :, None], 0.0) for x in (tokens, value))
        count, grid, total = tokens.shape[2], parameters["grid"], parameters["landmarks"]
        side, prefix = grid_landmarks(count, total, grid) if grid else (0, 0)
        if grid:
            total = prefix + math.prod(-(-size // side) for size in grid)
        if total >= count:
            _warn_once(
                f"{self.name!r} with mode='low_rank': {total} landmarks for {count} tokens, so the "
                f"kernel is computed exactly. Sequences longer than `landmarks` are approximated."
            )
            keep = None if valid is None else (valid[:, :, None] & valid[:, None, :])[:, None]
            return self._exact(call, tokens, tokens, value, keep, None)
        if grid:
            segment = grid_segments(grid, side, prefix, tokens.device)
        else:
            segment = segments(count, total, valid, tokens.device)
        members = membership(segment, total, valid)
        factors = self._factors(tokens, members, valid, parameters["iterations"])
        output = factors.apply(value).transpose(1, 2).contiguous()
        return output, factors.dense() if call.weights else None

    def _factors(
        self, tokens: Tensor, members: Tensor, valid: Tensor | None, iterations: int
    ) -> LowRank:
        sizes = members.sum(-1)
        means = members.to(tokens.dtype) / sizes.clamp(min=1)[..., None]
        landmarks = torch.matmul(means[:, None], tokens)
        if valid is None:
            return low_rank_gaussian(tokens, landmarks, norm=self.normalize, iterations=iterations)
        factors = low_rank_gaussian(
            tokens,
            landmarks,
            norm=self.normalize,
            iterations=iterations,
            present=sizes > 0,
            valid=valid,
        )
        # a row of the batch whose landmarks are its tokens: what it would get without its padding
        exact = (sizes <= 1).all(-1)[:, None, None, None]
        kernel = factors.left
        if self.normalize:
            kernel = kernel / kernel.sum(-1, keepdim=True).clamp(min=torch.finfo(kernel.dtype).tiny)
        identity = torch.eye(members.shape[1], dtype=tokens.dtype, device=tokens.device)
        return LowRank(
            torch.where(exact, kernel, factors.left),
            torch.where(exact, identity, factors.middle),
            torch.where(exact, means[:, None], factors.right),
        )

    def _admit(self, call: Call, tie: str) -> Tensor | None:
        """Which tokens are no padding, (B, N), or None; raise for what has no low-rank form."""
        queries, keys = call.query.shape[2], call.key.shape[2]
        reason = None
        if queries != keys:
            reason = (
                f"{queries} queries and {keys} keys (cross-attention, or decoding with a cache)"
            )
        elif call.visible.causal:
            reason = "a causal mask (is_causal)"
        elif call.position_bias is not None:
            reason = "a position_bias"
        if reason is not None:
            raise ValueError(refusal(self.name, reason))
        if call.dropout > 0:
            raise ValueError(
                f"attn_implementation={self.name!r} with mode='low_rank' forms no weights that "
                f"dropout={call.dropout} could drop: set the attention dropout in the model's "
                f"config to 0, or mode='exact'."
            )
        compare = tie == "error" and call.query is not call.key
        if compare and call.query.shape != call.key.shape:
            raise ValueError(unequal(self.name))
        if call.visible.keep is None and not compare:
            return None
        keep = call.visible.keep
        if keep is not None:
            keep = keep[(None,) * (4 - keep.dim())]
        compared = (call.query.detach(), call.key.detach()) if compare else (None, None)
        # its answer is used even where there is no mask: an operator without a use is left out of a
        # compiled graph
        bias = None if call.visible.bias is None else call.visible.bias.detach()
        return admit_tokens(keep, bias, *compared, self.name)


_PARAMETERS = {
    "scale": Number(default=None, low=0, high=1e4, above_low=True),
    "mode": Choice(default="exact", options=("exact", "low_rank")),
    # 7 x 7, the paper's at 224 pixels
    "landmarks": Number(default=49, low=1, high=2**20, integer=True),
    # the paper's
    "iterations": Number(default=20, low=1, high=100, integer=True),
    "tie": Choice(default="error", options=("error", "query", "mean")),
    "grid": Pair(low=1, high=2**15),
}

SOFT = GaussianAttention("soft", normalize=False, parameters=_PARAMETERS)
SOFT_NORM = GaussianAttention("soft_norm", normalize=True, parameters=_PARAMETERS)
