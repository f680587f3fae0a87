"""What losses do with a tensor that comes along with the logits."""

from torch import Tensor


def like_logits(name: str, value: Tensor, logits: Tensor) -> Tensor:
    """A number for each logit, in the dtype and on the device of the logits.

    Args:
        name: what it is called, for the error.
        value: the shape of the logits; where they have one column, also (N,).
        logits: (N, C).

    Returns:
        (N, C).

    Raises:
        ValueError: another shape.
    """
    column = logits.shape[-1] == 1 and value.shape == logits.shape[:-1]
    if value.shape != logits.shape and not column:
        raise ValueError(
            f"{name} has rows of shape {tuple(value.shape[1:])}, and the logits have "
            f"{logits.shape[-1]} a row: it needs a number for each logit."
        )
    return value.reshape(logits.shape).to(logits)
