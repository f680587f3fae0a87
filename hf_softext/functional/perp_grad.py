"""The part of a gradient that does not only make the weights longer or shorter."""

import math

import torch
from torch import Tensor

GRANULARITIES = ("tensor", "row")


def project_out(
    gradient: Tensor,
    weight: Tensor,
    *,
    renorm: bool = True,
    granularity: str = "tensor",
    min_residual: float = 1e-6,
    eps: float = 1e-30,
) -> Tensor:
    r"""The gradient without its component along the weight, at its old length.

    $$r = g - \frac{\langle w, g\rangle}{\langle w, w\rangle + \epsilon}\,w, \qquad
    g_\perp = r\,\frac{\lVert g\rVert}{\lVert r\rVert}$$

    so that $\langle w, g_\perp\rangle = 0$ and $\lVert g_\perp\rVert = \lVert g\rVert$.

    Args:
        gradient: any shape, real floating point.
        weight: same shape.
        renorm: rescale to the old length, as the authors' code does. False leaves $r$, the plain
            projection.
        granularity: what counts as one vector: the whole "tensor", as in the authors' code, or
            each "row", that is each index of the first dimension of a tensor with two or more.
        min_residual: where $\lVert r\rVert \le$ this share of $\lVert g\rVert$ the result is 0. At
            least half the machine epsilon of the gradient's dtype is used (0.004 in bfloat16).
        eps: added to $\langle w, w\rangle$: a weight of length below $\sqrt\epsilon$ counts as 0.

    Returns:
        Shape and dtype of `gradient`. A zero weight and a vector of one element leave their
        gradient as it is; NaN and infinity in either input give NaN in that vector.

    Raises:
        ValueError: an unknown granularity.

    Notes:
        Deviations from the authors' code, which has neither rule. Of a gradient parallel to the
        weight nothing but rounding is left, and rescaling would blow that up to full length:
        hence `min_residual`. A single number has no other direction, so projecting it would
        freeze it for good (a learned temperature, say).

        Computed in float32, or float64 if an input has it. Gradients are divided by their largest
        entry first, as the square of 1e-23 is 0 in float32, and projected twice, so that the
        result is orthogonal to rounding also where little of it is left.

    Reference:
        L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
        Stability", 2025, arXiv 2501.04697: the projection (the rescaling is in their code).
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r} must be one of {', '.join(GRANULARITIES)}.")
    dims = tuple(range(1 if granularity == "row" and gradient.dim() > 1 else 0, gradient.dim()))
    if gradient.numel() == 0 or math.prod(gradient.shape[dim] for dim in dims) == 1:
        return gradient

    def length(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=dims, keepdim=True)

    wide = torch.promote_types(torch.promote_types(gradient.dtype, weight.dtype), torch.float32)
    w, g = weight.to(wide), gradient.to(wide)
    square, largest = length(w).square(), g.abs().amax(dim=dims, keepdim=True)
    # a zero weight shall give back the very bits
    scale = torch.where((square == 0) | (largest == 0), torch.ones_like(largest), largest)
    unit = g / scale
    rest = unit
    for _ in range(2):
        share = (w * rest).sum(dim=dims, keepdim=True) / (square + eps)
        rest = torch.addcmul(rest, w, share, value=-1)
    before, after = length(unit), length(rest)
    factor = scale * (before / after) if renorm else scale
    # 0/0 where nothing is left
    least = max(min_residual, torch.finfo(gradient.dtype).eps / 2) * before
    factor = torch.where(after <= least, torch.zeros_like(factor), factor)
    factor = torch.where(square == 0, torch.ones_like(factor), factor)
    return (rest * factor).to(gradient.dtype)
