"""A loss of the outputs of a linear layer, a few rows at a time, without the outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# (logits, labels) to the loss of each row
PerRow = Callable[[Tensor, Tensor], Tensor]
# (logits, labels, weight) to the same, with the logits overwritten by their weighted derivative
InPlace = Callable[[Tensor, Tensor, Tensor], Tensor]

# logits held at once, and those of them that the loss sees at once: matrix products want many
# rows, the loss's passes want what the caches hold; a GPU wants much of both
_BYTES = {"cpu": (2**25, 2**20)}
_BYTES_ELSEWHERE = (2**29, 2**29)


def linear_loss(
    per_row: PerRow,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    *,
    bias: Tensor | None = None,
    gradient_: InPlace | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""$\sum_i w_i\,\ell(z_i, y_i)$ with $z_i = s\,(W h_i + b)$, without the N x V logits.

    A chunk of rows at a time, the forward pass computes logits, loss and derivatives and keeps
    only $\partial/\partial h$, $\partial/\partial W$ and $\partial/\partial b$, which the backward
    pass multiplies by its scalar. The three matrix products of the layer, none of them twice.

    Args:
        per_row: the loss of each row, any function of (n, V) logits and (n,) labels to (n,) that
            autograd knows and that sees the rows one by one.
        hidden: (..., D), floating point.
        weight: (V, D), same dtype: the layer's weight, or tied embeddings.
        labels: (...), int64; any value where the row's weight is 0.
        row_weight: (...): what each row counts, the division by their number included. A constant.
            Rows of weight 0 are left out before anything is computed.
        bias: (V,), or None.
        gradient_: the same loss with its derivative in closed form, as `SoftextLoss.gradient_`:
            faster, and in the memory of the chunk. Not used with `softcap`.
        scale: s, as `logit_scale` of Cohere models.
        softcap: c: the loss sees $c\tanh(z/c)$, as `final_logit_softcapping` of Gemma models.
        chunk: rows at a time; by default as many as have 32 MiB of logits, 512 MiB on a GPU.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable once, in hidden, weight and bias,
        by one backward pass. No row: 0, with gradients of 0. Nothing is computed for what needs
        no gradient: with a frozen weight there is one product less, and without gradients
        only the loss.

    Raises:
        ValueError: shapes or dtypes that do not fit, `chunk` below 1, or a row weight that wants a
            gradient.

    Notes:
        Logits come out of the product in float32 and are not rounded to half precision, and
        all gradients are summed in float32. On CUDA the factors are in half precision, under
        autocast in its dtype, and so is the derivative by the logits when it is multiplied.
        Elsewhere the products are in float32, also under autocast, with a copy of a weight that
        is not.

        There is no per-row result on purpose: the derivatives are summed before an upstream
        gradient for each row could be known. torch.compile breaks the graph here.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    labels, row_weight = labels.reshape(-1).long(), row_weight.reshape(-1)
    _check(rows, weight, labels, row_weight, bias, chunk)
    counts = row_weight.nonzero()[:, 0]
    if len(counts) < len(rows):
        rows, labels, row_weight = rows[counts], labels[counts], row_weight[counts]
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    wide = torch.promote_types(dtype, torch.float32)
    # only CUDA has products of half-precision factors that are not rounded to half precision
    factors = dtype if device == "cuda" else wide
    wanted = [
        torch.is_grad_enabled() and x is not None and x.requires_grad for x in (rows, weight, bias)
    ]
    rows_at_once, piece = (
        max(1, size // (weight.shape[0] * wide.itemsize))
        for size in _BYTES.get(device, _BYTES_ELSEWHERE)
    )
    chunk = chunk or rows_at_once
    plan = _Plan(per_row, gradient_, scale, softcap, chunk, piece, factors, wide, wanted)
    # autocast must not reach into products and losses
    with torch.autocast(device, enabled=False):
        return _LinearLoss.apply(rows, weight, bias, labels, row_weight.to(wide), plan)


class _Plan(NamedTuple):
    """What does not change from chunk to chunk."""

    per_row: PerRow
    gradient_: InPlace | None
    scale: float
    softcap: float | None
    chunk: int
    piece: int
    factors: torch.dtype
    wide: torch.dtype
    wanted: list[bool]

    def losses(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """The loss of each row; the logits become its weighted derivative if that is wanted."""
        if not any(self.wanted):
            return self._of(logits, labels)
        if self.gradient_ is not None and self.softcap is None:
            return self.gradient_(logits, labels, weight)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = self._of(leaf, labels)
            (derivative,) = torch.autograd.grad(losses, leaf, weight.to(losses))
        logits.copy_(derivative)
        return losses.detach()

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return self.per_row(logits, labels)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        row_weight: Tensor,
        plan: _Plan,
    ) -> Tensor:
        by_rows, by_weight, by_bias = plan.wanted
        # derivatives with weights up to 1 fit half precision; those divided by their number do not
        unit = row_weight.abs().amax() if len(row_weight) else row_weight.new_ones(())
        share = row_weight / unit
        narrow, matrix = rows.to(plan.factors), weight.to(plan.factors)
        offset = None if bias is None else bias.to(plan.wide)
        total = row_weight.new_zeros(())
        buffer = row_weight.new_empty(min(plan.chunk, len(rows)), len(weight))
        d_rows = torch.empty_like(rows, dtype=plan.wide) if by_rows else None
        d_weight = torch.zeros_like(weight, dtype=plan.wide) if by_weight else None
        d_bias = weight.new_zeros(len(weight), dtype=plan.wide) if by_bias else None
        for start in range(0, len(rows), plan.chunk):
            part = slice(start, start + plan.chunk)
            logits = buffer[: len(narrow[part])]
            _product(narrow[part], matrix.T, out=logits)
            if offset is not None:
                logits.add_(offset)
            if plan.scale != 1:
                logits.mul_(plan.scale)
            for z, y, w in zip(
                logits.split(plan.piece),
                labels[part].split(plan.piece),
                share[part].split(plan.piece),
                strict=True,
            ):
                total += plan.losses(z, y, w * plan.scale) @ w
            if not any(plan.wanted):
                continue
            if d_bias is not None:
                d_bias += logits.sum(0)
            derivative = logits.to(plan.factors)
            if d_rows is not None:
                _product(derivative, matrix, out=d_rows[part])
            if d_weight is not None:
                _add_product(d_weight, derivative.T, narrow[part])
        ctx.save_for_backward(d_rows, d_weight, d_bias, unit)
        ctx.dtypes = [x if x is None else x.dtype for x in (rows, weight, bias)]
        return total * unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *derivatives, unit = ctx.saved_tensors
        # in place, for want of memory: torch refuses a second pass over what has changed since
        found = (
            None if x is None else x.mul_(grads[0] * unit).to(dtype)
            for x, dtype in zip(derivatives, ctx.dtypes, strict=True)
        )
        return *found, None, None, None


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write the product, not rounded to the dtype of its factors."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product, in the dtype of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        # torch.addmm takes no float32 total of half-precision factors before 2.10
        total.add_(torch.mm(left, right, out_dtype=total.dtype))


def _check(
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    bias: Tensor | None,
    chunk: int | None,
) -> None:
    if weight.dim() != 2 or rows.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden has {rows.shape[-1]} columns and weight is {tuple(weight.shape)}: it must be "
            "(V, D)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}.")
    if not torch.is_autocast_enabled(rows.device.type) and rows.dtype != weight.dtype:
        raise ValueError(
            f"hidden is {rows.dtype} and weight {weight.dtype}: make them one, or use autocast."
        )
    if not len(labels) == len(row_weight) == len(rows):
        raise ValueError(
            f"{len(rows)} rows have {len(labels)} labels and {len(row_weight)} row weights."
        )
    if row_weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("row_weight wants a gradient, which is not computed: use .detach().")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1.")
