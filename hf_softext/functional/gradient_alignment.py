"""Two gradients of which one must not be undone by the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def align_gradients(
    distilled: Sequence[Tensor | None], reference: Sequence[Tensor | None]
) -> list[Tensor | None]:
    r"""The sum of two gradients, the first without what it takes back of the second.

    $$g = g_r + g_d - \min\Big(0, \frac{\langle g_d, g_r\rangle}{\lVert g_r\rVert^2}\Big)\,g_r$$

    The tensors of each gradient count as one vector. $\langle g, g_r\rangle \ge \lVert g_r\rVert^2$
    holds, so that a small step along $-g$ lowers the reference objective at least as much as one
    along $-g_r$.

    Args:
        distilled: $g_d$, one tensor for each parameter, of the teacher's objective, say; None for a
            parameter that it does not reach.
        reference: $g_r$, the same for the objective that comes first: cross-entropy.

    Returns:
        One tensor for each parameter, in the dtype of its gradients; None where both are.

    Raises:
        ValueError: gradients of another number of parameters, or of other shapes.

    Notes:
        The inner products are taken in float32, or float64 if the gradients have it, after the
        reference has been divided by its largest entry, as the square of 1e-23 is 0 in float32.
        Nothing is read back to the host. A gradient that is spread over processes (FSDP,
        DeepSpeed ZeRO) has to be whole first.

    Reference:
        P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An, "Dual-Head Knowledge Distillation:
        Enhancing Logits Utilization with an Auxiliary Head", 2024, arXiv 2411.08937.
    """
    if len(distilled) != len(reference):
        raise ValueError(
            f"distilled has {len(distilled)} gradients and reference {len(reference)}: one is "
            "needed for each parameter, or None."
        )
    for index, (d, r) in enumerate(zip(distilled, reference, strict=True)):
        if d is not None and r is not None and d.shape != r.shape:
            raise ValueError(
                f"gradient {index} is {tuple(d.shape)} in distilled and {tuple(r.shape)} in "
                "reference."
            )
    known = [r for r in reference if r is not None and r.numel()]
    if not known:
        return list(distilled)
    home = known[0].device
    largest = torch.stack([_wide(r).abs().amax().to(home) for r in known]).amax()
    scale = torch.where(largest == 0, 1.0, largest)
    product = square = torch.zeros((), device=home)
    for d, r in zip(distilled, reference, strict=True):
        if r is None:
            continue
        unit = _wide(r) / scale.to(r.device)
        square = square + unit.square().sum().to(home)
        if d is not None:
            product = product + (_wide(d) * unit).sum().to(home)
    # not clamp: a product of 0 by 0 would be NaN
    share = torch.where(product < 0, product / square, 0.0) / scale
    return [_merged(d, r, share) for d, r in zip(distilled, reference, strict=True)]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _merged(d: Tensor | None, r: Tensor | None, share: Tensor) -> Tensor | None:
    if r is None:
        return d
    kept = _wide(r) * (1 - share.to(r.device))
    return (kept if d is None else kept + _wide(d)).to(r.dtype)
