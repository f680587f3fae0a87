"""One score from those of several layers, and where to draw the line."""

import math

import torch
from torch import Tensor

from hf_softext.functional.logistic_regression import logistic_regression


def layer_weights(inside: Tensor, outside: Tensor | None = None) -> tuple[Tensor, float]:
    r"""w and b of $s = w \cdot M + b$, which is high in distribution.

    Args:
        inside: (N, L), scores of rows in distribution, finite.
        outside: (N', L), scores of other rows; logistic regression then tells them apart, with
            in distribution as class 1 and `C` = 1 on standardised scores. None: each layer counts
            with the inverse of its standard deviation, and b = 0.

    Returns:
        w (L,) and b.

    Notes:
        The authors fit with other rows, or with adversarial ones, and take a `C` from a grid by
        cross-validation. What is fitted on other rows tells those apart best, and kinds of rows
        that nobody thought of less well. The weights without them are our own.
    """
    if outside is None:
        if len(inside) < 2:
            return torch.full_like(inside[0], 1.0 / inside.shape[1]), 0.0
        return 1.0 / (inside.std(0).clamp(min=1e-12) * inside.shape[1]), 0.0
    rows = torch.cat([outside, inside])
    middle, width = rows.mean(0), rows.std(0).clamp(min=1e-12)
    labels = torch.cat([torch.zeros(len(outside)), torch.ones(len(inside))]).long()
    # scikit-learn's C = 1
    weight, bias = logistic_regression((rows - middle) / width, labels.to(rows.device), 2, c=0.5)
    slope = (weight[1] - weight[0]) / width
    return slope, float(bias[1] - bias[0] - slope @ middle)


def threshold(scores: Tensor, fpr: float) -> float:
    r"""The $\lfloor \mathrm{fpr}\,(N + 1)\rfloor$-th lowest of N scores.

    A new row from where they come scores below it with a probability of at most `fpr`, whatever
    the distribution, as long as the rows can be exchanged for one another.

    Args:
        scores: (N,), finite, of rows that nothing was fitted on.
        fpr: above 0 and below 1.

    Raises:
        ValueError: `fpr` is out of range, or too small for so few rows.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr={fpr!r} must be above 0 and below 1.")
    # 1e-9: what rounding takes from 0.05 * 20
    place = math.floor(fpr * (len(scores) + 1) + 1e-9)
    if place == 0:
        raise ValueError(
            f"fpr={fpr!r} needs at least {math.ceil(1 / fpr - 1e-9) - 1} rows, and there are "
            f"{len(scores)}."
        )
    return float(scores.sort().values[place - 1])
