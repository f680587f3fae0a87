"""Multinomial logistic regression to its optimum."""

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    c: float = 1.0,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> tuple[Tensor, Tensor]:
    r"""The one minimum of $\frac1N\sum_i -\ln\mathrm{softmax}(W x_i + b)_{y_i} + \frac1{2 c N}
    \lVert W\rVert^2$.

    Args:
        features: (N, D), floating point; computed in float64.
        labels: (N,), whole numbers from 0 to classes - 1.
        classes: C.
        c: how little the weights are held down; the `C` of scikit-learn, whose default it has. Of
            two classes scikit-learn holds down the difference of the weights alone: its `C` is
            then twice this one.
        tolerance: largest entry of the gradient at which to stop.
        iterations: of L-BFGS, at most.

    Returns:
        W (C, D) and b (C,), float64. b is not held down, and only its differences count.

    Raises:
        ValueError: c is not above 0, or `iterations` were not enough.
    """
    if not c > 0:
        raise ValueError(f"c={c!r} must be above 0.")
    rows = features.double()
    weight = rows.new_zeros(classes, rows.shape[1]).requires_grad_()
    bias = rows.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(rows @ weight.T + bias, labels)
        loss = loss + weight.square().sum() / (2.0 * c * len(rows))
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
        objective()
    left = max(float(one.grad.abs().max()) for one in (weight, bias) if one.grad is not None)
    if not left <= 10.0 * tolerance:
        raise ValueError(
            f"iterations={iterations!r} were not enough: the gradient is still {left:.1e}. Give "
            "more, a lower c, or standardised features."
        )
    return weight.detach(), bias.detach()
