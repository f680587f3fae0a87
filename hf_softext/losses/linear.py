"""A loss of the outputs of a linear layer, without the outputs."""

from torch import Tensor

from hf_softext.functional.linear_loss import linear_loss
from hf_softext.losses._rows import check_class_weight, divided
from hf_softext.losses.base import SoftextLoss


def loss_of_linear(
    loss: SoftextLoss,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    num_items: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""What `loss(linear(hidden), labels)` is, by chunks of the rows.

    $$z_i = \mathrm{cap}\,\bigl(s\,(W h_i + b)\bigr), \qquad
    \mathrm{cap}(z) = c\tanh(z / c)$$

    Rows whose label is ignored are taken out first. The logits of a chunk exist in float32, those
    of all rows never.

    Args:
        loss: one that `can_fuse`.
        hidden: (..., D).
        weight: (V, D), the output layer's or tied embeddings.
        labels: (...), integers.
        bias: (V,), or None.
        scale: $s$, a factor of the logits.
        softcap: $c$, or None.
        num_items: what to divide the sum by, by default `loss.count(labels)`.
        sample_weight: (...), what each row counts.

    Returns:
        A scalar, float32. Differentiable once, by `hidden`, `weight` and `bias`.

    Raises:
        ValueError: a loss that is no sum over rows of logits, labels out of range, or shapes that
            do not fit.
    """
    if not can_fuse(loss):
        raise ValueError(f"{loss.name!r} is not a sum over rows that depends on the logits alone.")
    if labels.shape != hidden.shape[:-1] or labels.is_floating_point():
        raise ValueError(
            f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not fit hidden states "
            f"of shape {tuple(hidden.shape)}."
        )
    check_class_weight(loss, len(weight))
    labels = labels.to(hidden.device)
    y, weights = labels.reshape(-1), loss.weights(labels, sample_weight).reshape(-1)
    valid = y != loss.ignore_index
    y, weights = y[valid].long(), weights[valid]
    if bool(((y < 0) | (y >= len(weight))).any()):
        raise ValueError(
            f"labels from {int(y.min())} to {int(y.max())} do not fit {len(weight)} classes."
        )
    h = hidden.reshape(-1, hidden.shape[-1])[valid]
    gram = getattr(loss, "linear", None)
    # a loss of standardised logits does not see a scale, and needs no logits at all
    if gram is not None and softcap is None and scale > 0 and len(y) > weight.shape[1]:
        total = gram(h, weight, y, weights, bias)
    else:
        total = linear_loss(
            loss.per_sample,
            h,
            weight,
            y,
            weights,
            bias=bias,
            gradient_=loss.gradient_ if loss.in_place else None,
            scale=scale,
            softcap=softcap,
        )
    if num_items is None:
        num_items = loss.count(labels, sample_weight)
    return divided(total, num_items)


def can_fuse(loss: SoftextLoss) -> bool:
    """Whether a loss can do without the logits of all rows at once."""
    alone = not (loss.needs or loss.stateful)
    return loss.decomposable and alone and "token" in loss.kinds
