"""Standardised outputs of a linear layer, without the outputs."""

import torch
from torch import Tensor


def gram_standardized(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-12,
) -> Tensor:
    r"""One output of each row, less the mean of all and divided by their standard deviation.

    For outputs $o_i = W h_i$ of V classes, with $\bar w$ the mean row of W and
    $\tilde W = W - 1\bar w^\top$,

    $$z_i = \frac{(w_{y_i} - \bar w)\cdot h_i}{\sqrt{h_i^\top G h_i / V + \epsilon}}, \qquad
    G = \tilde W^\top \tilde W$$

    The N x V outputs never exist: memory is that of $\tilde W$, time $V D^2 + N D^2$ products in
    place of $N V D$. So it is also less work where N > D.

    Args:
        hidden: (N, D), floating point.
        weight: (V, D), same dtype: the layer's weight, or tied embeddings.
        labels: (N,), int64, which output of each row.
        bias: (V,), or None.
        eps: $\epsilon$, added to the variance.

    Returns:
        (N,), float32 (float64 for float64); half precision and autocast are computed in float32,
        as G has no use for fewer digits. Plain autograd: differentiable in hidden, weight and bias.

    Raises:
        ValueError: shapes that do not fit.

    Notes:
        The centred weight is squared, not the weight: nothing cancels where its mean row is large.

    Reference:
        A. de Brébisson, P. Vincent, "The Z-loss: a shift and scale invariant classification loss
        belonging to the Spherical Family", 2016, arXiv 1604.08859, for what is computed. Their
        update in time D^2 a row (P. Vincent, A. de Brébisson, X. Bouthillier, "Efficient Exact
        Gradient Update for training Deep Networks with Very Large Sparse Targets", 2015, arXiv
        1412.7091) needs plain SGD and a factored weight; this form, which is ours, needs neither.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit: they must "
            "be (N, D) and (V, D)."
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must have a class for each row of hidden.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}.")
    wide = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.to(wide), weight.to(wide)
        if bias is not None:
            # one more input, which is always 1
            hidden = torch.nn.functional.pad(hidden, (0, 1), value=1.0)
            weight = torch.cat([weight, bias.to(wide)[:, None]], dim=1)
        centred = weight - weight.mean(0)
        gram = centred.T @ centred
        # rounding may leave a little less than 0
        variance = (hidden @ gram * hidden).sum(-1).clamp(min=0) / weight.shape[0]
        target = (torch.nn.functional.embedding(labels, centred) * hidden).sum(-1)
        return target * (variance + eps).rsqrt()
