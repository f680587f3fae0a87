"""The exponentials of a softmax and their sum, in the memory of the logits."""

from torch import Tensor


def shifted_exp_(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Overwrite each row by $e^{(z - m)/\tau}$, with $m$ its largest entry.

    What the losses' closed-form derivatives share: softmax is the row divided by its sum, and
    $\log\sum_k e^{z_k/\tau} = m/\tau + \log S$. Nothing of the size of the logits is allocated.

    Args:
        logits: (N, C), float32 or float64, C at least 1; overwritten.
        temperature: $\tau > 0$.

    Returns:
        $m$ and the sum $S$, both (N,). A row with NaN or +inf, or of -inf alone, becomes NaN, as
        in softmax.
    """
    largest = logits.amax(-1)
    logits.sub_(largest[:, None])
    if temperature != 1:
        logits.div_(temperature)
    return largest, logits.exp_().sum(-1)
