"""Attention a few query rows at a time, forward and backward, in memory that does not grow with
the square of the length."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_softext.functional.reverse_only import reverse_only
from hf_softext.functional.row_maps import ROW_MAPS

# scores held at once: 4 MiB in float32, which two cores' caches about hold
_SCORES_AT_ONCE = 2**20
# fewer rows than this make thin matrix products
_FEWEST_ROWS = 64


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    row_map: str,
    options: dict[str, Any] | None = None,
    keep: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    r"""Attention whose weights are a row map of the scores.

    $$s = c\tanh(QK^\top/c) + \text{bias}, \qquad O = \mathrm{rows}(s)\,V$$

    Neither scores nor weights are kept: the backward pass computes them again, a few rows at a
    time, and applies the derivative in closed form. Differentiable once, in reverse mode, in
    query, key, value and bias.

    Args:
        query: (B, H, Q, D), float32 or float64, every scale already in it.
        key: (B, G, K, D), H a multiple of G.
        value: (B, G, K, Dv).
        row_map: a name in `ROW_MAPS`.
        options: parameters of the map.
        keep: bool, broadcastable to (B, H, Q, K) with K written out; True is visible. None: every
            key is, or those up to the query if `causal`.
        causal: without `keep`, query i sees keys 0 to i.
        bias: broadcastable to (B, H, Q, K), same dtype as the query.
        softcap: c > 0, or None for no cap.
        dropout: probability with which a weight is set to 0, the others being divided by 1 - p.

    Returns:
        (B, Q, H, Dv), contiguous.

    Raises:
        ValueError: an unknown row map, half precision, heads that are no multiple of the groups,
            or a dropout outside 0 to 1.
        NotImplementedError: forward-mode differentiation.

    Notes:
        Extra memory is some five buffers of max(2^20, 64 K) scores. Columns that no query of a
        chunk sees are left out, so causal attention does half the work. One operator for
        torch.compile: it adds no graph break and no shape to compile for.
    """
    if row_map not in ROW_MAPS:
        raise ValueError(f"row_map={row_map!r} must be one of {', '.join(ROW_MAPS)}.")
    if query.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"query is {query.dtype}, it must be float32 or float64: use x.float().")
    if key.shape[1] and query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads, which is no multiple of the key's {key.shape[1]}."
        )
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout={dropout!r} must be from 0 to 1.")
    reverse_only(
        "chunked_attention", "the whole matrix (output_attentions=True)", query, key, value
    )
    encoded = ROW_MAPS[row_map].encode(**(options or {}))
    # the backward pass draws the same numbers again
    seed = torch.randint(2**62, ()) if dropout > 0 else None
    return _attend(
        query, key, value, keep, bias, seed, row_map, encoded, causal, softcap or 0.0, dropout
    )


@torch.library.custom_op("softext::chunked_attention", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    row_map: str,
    options: Sequence[float],
    causal: bool,
    softcap: float,
    dropout: float,
) -> Tensor:
    views = _Views(query, key, value, keep, bias, causal)
    rows = ROW_MAPS[row_map](*options)
    batch, heads, queries, _ = query.shape
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    out = views.grouped(output.transpose(1, 2))
    for index, tile in enumerate(views.tiles()):
        scores, _ = views.scores(tile, softcap, backward=False)
        weights, _ = rows.weights(scores, tile.count)
        if seed is not None:
            weights.mul_(_kept(weights, seed, index, dropout))
        out[tile.rows].copy_(_matmul(weights, views.value[tile.columns]))
    return output


@_attend.register_fake
def _(query, key, value, *_):
    batch, heads, queries, _ = query.shape
    return value.new_empty(batch, queries, heads, value.shape[-1])


@torch.library.custom_op("softext::chunked_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    row_map: str,
    options: Sequence[float],
    causal: bool,
    softcap: float,
    dropout: float,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    views = _Views(query, key, value, keep, bias, causal)
    rows = ROW_MAPS[row_map](*options)
    out_grad = views.grouped(grad.transpose(1, 2))
    query_grad, key_grad, value_grad = (torch.zeros_like(x) for x in (query, key, value))
    no_bias = query.new_zeros(0)
    d_bias = torch.zeros_like(bias) if bias_grad and bias is not None else no_bias
    d_query, d_key, d_value = views.grouped(query_grad), key_grad, value_grad
    for index, tile in enumerate(views.tiles()):
        scores, capped = views.scores(tile, softcap, backward=True)
        weights, pullback = rows.weights(scores, tile.count)
        upstream = out_grad[tile.rows]
        grad_weights = _matmul(upstream, views.value[tile.columns].transpose(-1, -2))
        if seed is None:
            dropped = weights
        else:
            kept = _kept(weights, seed, index, dropout)
            dropped = weights * kept
            grad_weights.mul_(kept)
        d_value[tile.columns].add_(_matmul_rows(dropped, upstream))
        grad_scores = pullback(grad_weights)
        if d_bias.numel():
            part = views.cut(views.broadcast(d_bias), tile)
            part.add_(grad_scores.sum_to_size(part.shape))
        if capped is not None:
            grad_scores.mul_(1.0 - (capped / softcap).square_())
        d_query[tile.rows].copy_(_matmul(grad_scores, views.key[tile.columns]))
        d_key[tile.columns].add_(_matmul_rows(grad_scores, views.query[tile.rows]))
    return query_grad, key_grad, value_grad, d_bias


@_attend_backward.register_fake
def _(grad, query, key, value, keep, bias, *settings):
    bias_grad = settings[-1]
    d_bias = torch.empty_like(bias) if bias_grad and bias is not None else query.new_empty(0)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), d_bias


def _setup(ctx, inputs, output):
    *tensors, ctx.row_map, ctx.options, ctx.causal, ctx.softcap, ctx.dropout = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    bias_grad = ctx.needs_input_grad[4]
    settings = (ctx.row_map, ctx.options, ctx.causal, ctx.softcap, ctx.dropout)
    *grads, d_bias = _attend_backward(grad, *ctx.saved_tensors, *settings, bias_grad)
    return (*grads, None, d_bias if bias_grad else None, *(None,) * 6)


_attend.register_autograd(_backward, setup_context=_setup)


class _Tile(NamedTuple):
    """A few rows and the columns that they see, as indices into grouped tensors."""

    rows: tuple[slice, ...]
    columns: tuple[slice, ...]
    hidden: Tensor | None
    count: Tensor


class _Views:
    """The tensors with heads split into G groups of H / G, and their division into tiles."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keep: Tensor | None,
        bias: Tensor | None,
        causal: bool,
    ):
        self.groups = max(1, key.shape[1])
        self.query = self.grouped(query)
        self.key, self.value, self.causal = key, value, causal
        self.keep = None if keep is None else self.broadcast(keep)
        self.bias = None if bias is None else self.broadcast(bias)

    def grouped(self, tensor: Tensor) -> Tensor:
        """(B, H, Q, ...) as (B, G, H / G, Q, ...), a view."""
        return tensor.unflatten(1, (self.groups, tensor.shape[1] // self.groups))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """What is broadcastable to (B, H, Q, K) as such to (B, G, H / G, Q, K), a view."""
        tensor = tensor[(None,) * (4 - tensor.dim())]
        return tensor.unsqueeze(1) if tensor.shape[1] == 1 else self.grouped(tensor)

    def cut(self, tensor: Tensor, tile: _Tile) -> Tensor:
        """The part of a broadcastable tensor that belongs to a tile."""
        parts = (*tile.rows, tile.columns[-1])
        return tensor[
            tuple(
                part if size > 1 else slice(None)
                for part, size in zip(parts, tensor.shape, strict=True)
            )
        ]

    def tiles(self) -> Iterator[_Tile]:
        """Runs of rows of the score matrix, cut by group and batch as well where K is long."""
        batch, groups, heads, queries, _ = self.query.shape
        keys = self.key.shape[2]
        if 0 in (batch, groups, heads, queries, keys):
            return
        per_row = heads * keys
        rows = min(queries, max(_FEWEST_ROWS, _SCORES_AT_ONCE // (per_row * groups * batch)))
        some_groups = min(groups, max(1, _SCORES_AT_ONCE // (per_row * rows)))
        some_batch = min(batch, max(1, _SCORES_AT_ONCE // (per_row * rows * some_groups)))
        for b in range(0, batch, some_batch):
            for g in range(0, groups, some_groups):
                for r in range(0, queries, rows):
                    yield from self._tile(
                        slice(b, min(batch, b + some_batch)),
                        slice(g, min(groups, g + some_groups)),
                        slice(r, min(queries, r + rows)),
                    )

    def _tile(self, b: slice, g: slice, r: slice) -> Iterator[_Tile]:
        keys, device, every = self.key.shape[2], self.query.device, slice(None)
        first, last, hidden = 0, keys, None
        if self.keep is not None:
            whole = _Tile((b, g, every, r), (b, g, slice(0, keys)), None, self.query)
            keep = self.cut(self.keep, whole)
            count = keep.sum(dim=-1, keepdim=True)
            seen = keep.flatten(0, -2).any(dim=0).nonzero()
            if len(seen) == 0:
                return
            first, last = int(seen[0]), int(seen[-1]) + 1
            keep = keep[..., first:last]
            hidden = None if bool(keep.all()) else ~keep
        elif self.causal:
            last = min(keys, r.stop)
            rows = torch.arange(r.start, r.stop, device=device)[:, None]
            count = (rows + 1).clamp(max=keys)
            hidden = rows < torch.arange(last, device=device) if last > r.start + 1 else None
        else:
            count = torch.full((1,), keys, device=device)
        yield _Tile(
            (b, g, every, r), (b, g, slice(first, last)), hidden, count.to(self.query.dtype)
        )

    def scores(self, tile: _Tile, softcap: float, backward: bool) -> tuple[Tensor, Tensor | None]:
        """Scores of a tile, -inf where hidden; and for `backward` those that the cap returned."""
        scores = _matmul(self.query[tile.rows], self.key[tile.columns].transpose(-1, -2))
        capped = None
        if softcap:
            scores.div_(softcap).tanh_().mul_(softcap)
            capped = scores.clone() if backward else None
        if self.bias is not None:
            scores.add_(self.cut(self.bias, tile))
        if tile.hidden is not None:
            scores.masked_fill_(tile.hidden, -math.inf)
        return scores, capped


def _matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """(b, g, n, r, x) times (b, g, x, y), with the n heads of a group as more rows."""
    product = torch.matmul(rows.flatten(2, 3), matrix)
    return product.unflatten(2, rows.shape[2:4])


def _matmul_rows(left: Tensor, right: Tensor) -> Tensor:
    """(b, g, n, r, x) and (b, g, n, r, y) to (b, g, x, y), summed over the rows of all n heads."""
    return torch.matmul(left.flatten(2, 3).transpose(-1, -2), right.flatten(2, 3))


def _kept(weights: Tensor, seed: Tensor, index: int, dropout: float) -> Tensor:
    """0 with probability `dropout`, else 1 / (1 - dropout); the same for a tile in both passes."""
    generator = torch.Generator(weights.device).manual_seed(int(seed) + index)
    kept = torch.empty_like(weights).bernoulli_(1.0 - dropout, generator=generator)
    return kept.div_(1.0 - dropout) if dropout < 1 else kept
