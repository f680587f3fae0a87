"""The probability simplex: entries of at least 0 and of sum 1."""

from torch import Tensor, arange


def nearest_on_simplex(x: Tensor) -> Tensor:
    r"""The nearest points of sum 1 and without an entry below 0.

    $$\max(x - \theta, 0), \qquad \textstyle\sum_k \max(x_k - \theta, 0) = 1$$

    Args:
        x: (..., C), floating point.

    Returns:
        The shape and dtype of x.

    Reference:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, "Efficient Projections onto the l1-Ball
        for Learning in High Dimensions", 2008, figure 1.
    """
    falling = x.sort(dim=-1, descending=True).values
    count = arange(1, x.shape[-1] + 1, device=x.device)
    theta = (falling.cumsum(-1) - 1) / count
    last = (falling > theta).sum(-1, keepdim=True) - 1
    return (x - theta.gather(-1, last)).clamp(min=0)
