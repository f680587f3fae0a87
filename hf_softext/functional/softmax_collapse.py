"""Softmax collapse: rows whose softmax has run out of floating-point digits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# entries of the largest temporary: 64 MiB in float32
_CHUNK = 1 << 24


class Collapse(NamedTuple):
    """Counts of `softmax_collapse`: int64 tensors without dimensions.

    Attributes:
        rows: rows whose label is not `ignore_index`.
        saturated: of these, rows whose softmax denominator is exactly 1.
        zero_loss: of these, rows whose cross-entropy is exactly 0. So is the gradient at the label.
    """

    rows: Tensor
    saturated: Tensor
    zero_loss: Tensor


@torch.no_grad()
def softmax_collapse(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    dtype: torch.dtype | None = None,
) -> Collapse:
    r"""Counts the rows that cross-entropy can hardly learn from any more.

    $$\text{saturated}: \sum_j e^{z_j - \max_l z_l} = 1, \qquad
    \text{zero loss}: \log\sum_j e^{z_j} - z_y = 0$$

    both computed in one floating-point dtype, the second by torch's own cross-entropy.

    Args:
        logits: (..., C), floating point.
        labels: (...), integer: the class of each row. A language model's are shifted already.
        ignore_index: rows with this label do not count.
        dtype: what to compute in, which should be what the loss is computed in. By default the
            dtype of `logits`. transformers' causal loss converts to float32.

    Returns:
        The counts, on the device of `logits`; nothing waits for the device. Divide `saturated` and
        `zero_loss` by `rows` for shares.

    Raises:
        ValueError: the shapes do not belong together.
        TypeError: labels that are no integers.

    Notes:
        A saturated row whose label is not its largest logit has a loss and a gradient: it counts
        in `saturated` only. Where the loss is 0 the other logits keep a gradient, their softmax:
        at most the rounding of 1. A row with NaN counts in `rows` only. With one class every row
        collapses.

        Rows are taken in chunks, so that a temporary needs 64 MiB in float32 at most, or one row.

    Reference:
        L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
        Stability", 2025, arXiv 2501.04697: Softmax Collapse; both counts as in their code.
    """
    if logits.dim() == 0 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}: they must have its dimensions without the last."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}: pass the index of a class for each row.")
    labels, dtype = labels.to(logits.device, torch.long), dtype or logits.dtype
    counts = torch.zeros(3, dtype=torch.long, device=logits.device)
    if labels.numel() > 0:
        rows, classes = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        size = max(1, _CHUNK // max(1, rows.shape[-1]))
        for z, y in zip(rows.split(size), classes.split(size), strict=True):
            z, valid = z.to(dtype), y != ignore_index
            saturated = (z - z.amax(dim=-1, keepdim=True)).exp().sum(dim=-1) == 1
            losses = F.cross_entropy(z, y, ignore_index=ignore_index, reduction="none")
            found = torch.stack([valid, valid & saturated, valid & (losses == 0)])
            counts += found.sum(dim=-1)
    return Collapse(*counts)
