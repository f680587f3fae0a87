"""Softplus instead of exp in the normalisation of scores, and the sharpening of the result."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional.masked_softmax import masked_softmax
from hf_softext.functional.row_maps import NOISE

# below this, log(softplus(s)) equals s to float32 rounding (the error is e^s / 2)
_LINEAR_BELOW = -17.0


def log_softplus(scores: Tensor) -> Tensor:
    r"""$\log\log(1+e^s)$, finite with a finite gradient for every finite $s$.

    Args:
        scores: any shape, floating point.

    Returns:
        Same shape and dtype.

    Notes:
        For very negative $s$ softplus underflows while its logarithm is $s$ itself; that branch is
        used below -17 (float64: below -37) and the other one is clamped there, so that neither
        produces a NaN gradient.
    """
    split = _LINEAR_BELOW if scores.dtype != torch.float64 else -37.0
    return torch.where(
        scores < split, scores, F.softplus(scores.clamp(min=split), threshold=40).log()
    )


def softplus_normalize(scores: Tensor, keep: Tensor) -> Tensor:
    r"""Normalised softplus weights of the visible entries.

    $$a_{ij} = \frac{\log(1+e^{s_{ij}})}{\sum_{l\ \text{visible}} \log(1+e^{s_{il}})}$$

    Args:
        scores: (..., K), float32 or float64.
        keep: bool, broadcastable to `scores`; True is visible.

    Returns:
        (..., K): rows sum to 1, hidden entries and rows without a visible entry are exactly 0.

    Reference:
        B. Gao, M. W. Spratling, "Softplus Attention with Re-weighting Boosts Length Extrapolation
        in Large Language Models", 2025, arXiv 2501.13428: the normalisation stage.
    """
    return masked_softmax(log_softplus(scores), keep)


def sharpen(
    weights: Tensor,
    keep: Tensor,
    *,
    power: float = 15.0,
    shift: float = 1.0,
    free_rows: int = 3,
    degenerate: str = "softplus",
) -> Tensor:
    r"""Re-weight normalised weights: keep what is above average, raised to a power.

    $$u_{ij} = \max(N_i a_{ij} - O_i,\ 0), \qquad b_{ij} = \frac{u_{ij}^p}{\sum_l u_{il}^p}$$

    with $N_i$ the number of visible entries of row $i$ and $O_i$ = `shift` where $N_i$ >
    `free_rows`, else 0. As the mean of $N_i a_{ij}$ over the visible entries is 1, $O_i = 1$
    removes everything below average.

    Args:
        weights: (..., K), float32 or float64, non-negative, rows summing to 1 over the visible
            entries.
        keep: bool, broadcastable to `weights`; True is visible.
        power: p >= 1. 15 is the paper's value for extrapolation, 3 its best at the training length.
        shift: O >= 0 for rows with more than `free_rows` visible entries. The paper has 1; 0 with
            `power` 1 gives `weights` back.
        free_rows: rows with at most so many visible entries are not shifted. The paper exempts the
            first 3 rows of the causal matrix; counting visible entries instead makes padded,
            packed and cached runs agree with it.
        degenerate: for a row in which nothing exceeds the shift by more than rounding (all visible
            weights equal): "softplus" returns `weights` for that row, "zero" returns 0, which is
            what the formula says.

    Returns:
        (..., K): rows sum to 1 except degenerate rows under "zero" and rows without a visible
        entry, which are 0.

    Notes:
        Evaluated as softmax(p log u): u^15 overflows float32 from u = 371 and underflows below
        0.0012. The paper states no rule for degenerate rows; the fallback is this package's.

    Reference:
        B. Gao, M. W. Spratling, "Softplus Attention with Re-weighting Boosts Length Extrapolation
        in Large Language Models", 2025, arXiv 2501.13428: the sharpening stage.
    """
    visible = keep.sum(dim=-1, keepdim=True).to(weights.dtype)
    excess = visible * weights - shift * (visible > free_rows).to(weights.dtype)
    positive = (excess > 0) & keep
    log_excess = torch.where(positive, excess, 1.0).log()
    sharpened = masked_softmax(power * log_excess, positive)
    ordered = ((excess > NOISE[weights.dtype]) & keep).any(dim=-1, keepdim=True)
    return torch.where(ordered, sharpened, weights if degenerate == "softplus" else 0.0)
