"""Softmax over the visible entries of a row."""

import torch
from torch import Tensor


def masked_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    r"""Softmax over the last dimension that sees only the entries in `keep`.

    $$P_{ij} = \frac{k_{ij}\,e^{z_{ij}}}{\sum_l k_{il}\,e^{z_{il}}}, \qquad P_{i\cdot} = 0 \text{
    if no } k_{il} = 1$$

    Any positive map $w$ turns into normalised weights this way, $w_j / \sum_l w_l =
    \mathrm{softmax}(\log w)_j$, so this is the one normaliser of the package.

    Args:
        logits: (..., K), floating point: log-weights, finite at the visible entries.
        keep: bool, broadcastable to `logits`; True is visible.

    Returns:
        (..., K), dtype of `logits`. Hidden entries are exactly 0, also where their logit is NaN or
        infinite.

    Notes:
        A row with nothing visible is exactly 0 with a zero gradient: it takes the finite minimum
        instead of -inf, so that no 0/0 arises, and is zeroed afterwards.
    """
    hidden = ~keep
    floor = torch.finfo(logits.dtype).min
    return torch.softmax(logits.masked_fill(hidden, floor), dim=-1).masked_fill(hidden, 0.0)
