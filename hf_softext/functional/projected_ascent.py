"""The perturbation within a ball that makes an objective large."""

from collections.abc import Callable

import torch
from torch import Tensor

NORMS = ("l2", "linf")


def projected_ascent(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    size: float,
    steps: int,
    step_size: float,
    norm: str,
    dims: tuple[int, ...],
) -> Tensor:
    r"""Steps of a fixed length up the gradient, each followed by the way back into the ball.

    $$\delta \leftarrow \Pi\big(\delta + \eta\,u(\nabla_\delta f)\big)$$

    with $u(g) = g/\lVert g\rVert_2$ and $\Pi$ a scaling for "l2", $u(g) = \text{sign}(g)$ and $\Pi$
    a clamp for "linf".

    Args:
        objective: $f$, a scalar: a sum over vectors, so that none depends on the others.
        start: (...), floating point; where it is exactly 0 in all of a vector whose gradient is 0,
            that vector stays 0.
        size: radius of the ball, above 0, in the units of `start`.
        steps: how many, at least 1.
        step_size: $\eta$, above 0, in the same units.
        norm: "l2" or "linf".
        dims: the dimensions that make up one vector, each of which has a ball of its own.

    Returns:
        The shape and dtype of `start`, without a gradient.

    Raises:
        ValueError: a value out of its range.

    Notes:
        Gradients are taken for the perturbation alone: nothing else that the objective is computed
        from gets one. A vector whose gradient is 0 rests; NaN stays NaN.

    Reference:
        A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards Deep Learning Models
        Resistant to Adversarial Attacks", 2017, arXiv 1706.06083.
    """
    for name, value in (("size", size), ("step_size", step_size), ("steps", steps)):
        if not value > 0:
            raise ValueError(f"{name}={value!r} must be above 0.")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} must be one of {', '.join(NORMS)}.")
    delta = project(start.detach(), size, norm, dims)
    for _ in range(steps):
        with torch.enable_grad():
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(delta), delta)
        if norm == "linf":
            up = gradient.sign()
        else:
            length = torch.linalg.vector_norm(gradient, dim=dims, keepdim=True)
            up = gradient / length.clamp(min=torch.finfo(length.dtype).tiny)
        delta = project(delta.detach() + step_size * up, size, norm, dims)
    return delta


def project(delta: Tensor, size: float, norm: str, dims: tuple[int, ...]) -> Tensor:
    """The nearest perturbation in the ball; arguments as for `projected_ascent`."""
    if norm == "linf":
        return delta.clamp(-size, size)
    length = torch.linalg.vector_norm(delta, dim=dims, keepdim=True)
    return delta * (size / length.clamp(min=size))
