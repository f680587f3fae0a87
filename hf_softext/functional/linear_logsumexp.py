"""Log-sum-exp of the outputs of a linear layer, without the outputs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_softext.functional.extended_sum import ExtendedSum


def linear_logsumexp(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, chunk: int = 8192
) -> Tensor:
    r"""$\log\sum_v \exp(h \cdot w_v + b_v)$, by chunks of the vocabulary.

    The normaliser of a language model's loss: with the target's own logit, cross-entropy is
    `linear_logsumexp(h, w) - (h * w[targets]).sum(-1)`. The N x V logits never exist, neither here
    nor in backward, which computes each chunk again: memory is N x `chunk`, time a third matrix
    product more.

    Args:
        hidden: (..., D), floating point.
        weight: (V, D), same dtype: the layer's weight, or tied embeddings.
        bias: (V,), or None.
        chunk: outputs computed at a time.

    Returns:
        (...), float32 (float64 for float64): the products are in the dtype of `hidden`, the sum is
        not. Differentiable once, by all three tensors. Under autocast the products are in its
        dtype, as those of the layer would be.

    Raises:
        ValueError: `chunk` is below 1, or the shapes do not fit.

    Reference:
        M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", 2020, arXiv 2001.04438, for the
        sum; the chunked use of it is ours.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, it must be at least 1.")
    if weight.ndim != 2 or hidden.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit: the last "
            "dimensions must be equal, and weight must be (V, D)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}.")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    rows = hidden.reshape(-1, hidden.shape[-1])
    # backward, which autocast does not reach, must see the products that forward saw
    with torch.autocast(device, enabled=False):
        return _LinearLogsumexp.apply(rows, weight, bias, chunk).view(hidden.shape[:-1])


def _chunks(weight: Tensor, bias: Tensor | None, size: int):
    for start in range(0, weight.shape[0], size):
        part = slice(start, start + size)
        yield part, weight[part], None if bias is None else bias[part]


class _LinearLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        total = ExtendedSum.zero(rows.shape[:1], dtype=wide, device=rows.device)
        for _, w, b in _chunks(weight, bias, size):
            total = total.add(torch.nn.functional.linear(rows, w, b))
        result = total.logsumexp()
        ctx.save_for_backward(rows, weight, bias, result)
        ctx.size = size
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, result = ctx.saved_tensors
        by_rows, by_weight, by_bias = ctx.needs_input_grad[:3]
        # the sum over the chunks, so not in half precision
        grad_rows = torch.zeros_like(rows, dtype=result.dtype) if by_rows else None
        grad_weight = torch.empty_like(weight) if by_weight else None
        grad_bias = torch.empty_like(bias) if by_bias else None
        for part, w, b in _chunks(weight, bias, ctx.size):
            logits = torch.nn.functional.linear(rows, w, b).to(result.dtype)
            grad = (logits - result.unsqueeze(-1)).exp_().mul_(grads[0].unsqueeze(-1))
            if grad_bias is not None:
                grad_bias[part] = grad.sum(0)
            grad = grad.to(rows.dtype)
            if grad_rows is not None:
                grad_rows += grad @ w
            if grad_weight is not None:
                torch.mm(grad.T, rows, out=grad_weight[part])
        return None if grad_rows is None else grad_rows.to(rows.dtype), grad_weight, grad_bias, None
