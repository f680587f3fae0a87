"""Softmax for several positives a row, which do not compete with each other."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hf_softext.losses.base import SoftextLoss


class DecoupledSoftmaxLoss(SoftextLoss):
    r"""Each positive against the negatives of its row alone.

    $$\ell = \frac{1}{n}\sum_{j \in P} y_j \log\bigl(1 + e^{N - s_j}\bigr), \qquad
    N = \log\sum_{l \notin P} e^{s_l}, \quad s = z / \tau$$

    P are the n labels above 0 of a row. With one positive it is cross-entropy.

    Args:
        temperature: $\tau > 0$. 1, the default, for logits; the authors have 0.05 for cosines.
        **common: those of `SoftextLoss`; no `class_weight`, as a row has several classes.

    Notes:
        A row without a positive, and one without a negative, has the loss 0 and no derivative. The
        authors take the positives out of N by a score of -100, which is wrong for scores that are
        lower than that themselves; here they are out of it. A label between 0 and 1 weighs its
        term, as a relevance does in the authors' code; n counts it whole.

    Reference:
        N. Gupta, D. Khatri, A. S. Rawat, S. Bhojanapalli, P. Jain, I. Dhillon, "Dual-encoders for
        Extreme Multi-label Classification", 2024, arXiv 2310.10636.
    """

    name = "decoupled_softmax"
    kinds = frozenset({"multilabel"})

    def __init__(self, temperature: float = 1.0, **common: Any):
        super().__init__(**common)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature!r} must be above 0, and finite.")
        self.temperature = temperature

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits and labels (N, C)."""
        scores, positive = logits / self.temperature, labels > 0
        full = positive.all(-1, keepdim=True)
        # finite for a row without a negative: the derivative of log 0 would be NaN, times 0
        rest = scores.masked_fill(positive & ~full, float("-inf"))
        losses = -F.logsigmoid(scores - rest.logsumexp(-1, keepdim=True))
        losses = (labels * losses).masked_fill(~positive | full, 0.0)
        return losses.sum(-1) / positive.sum(-1).clamp(min=1)
