"""Random features of two kernels: of angles and norms, and the linear one."""

import torch.nn.functional as F
from torch import Tensor


def relu_features(x: Tensor, projection: Tensor, floor: float = 0.0) -> Tensor:
    r"""$\phi(x) = \max(G x, c) / \sqrt{R}$.

    With $c = 0$ and normal rows of $G$, $E \langle\phi(x), \phi(w)\rangle = |x||w| (\sin t + (\pi -
    t)\cos t) / 2\pi$ for the angle $t$ between them: half the arc-cosine kernel of order 1. That is
    not relu(w·x): it is positive even for orthogonal vectors.

    Args:
        x: (..., D).
        projection: G, (R, D), of the dtype of x.
        floor: c.

    Returns:
        (..., R). NaN stays in its row.

    Notes:
        At $c = 0$ the derivative at 0 is 0, so that rows of zeros, such as padding, pass no
        gradient on.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225, from the authors' code. The
        kernel: Youngmin Cho, Lawrence K. Saul, "Kernel Methods for Deep Learning", 2009.
    """
    z = F.linear(x, projection)
    return (F.relu(z) if floor == 0 else z.clamp(min=floor)) / len(projection) ** 0.5


def linear_features(x: Tensor, projection: Tensor) -> Tensor:
    r"""$\phi(x) = G x / \sqrt{R}$, whose expected inner products are those of the inputs.

    They are exactly so where $G^\top G / R = I$, see `random_projection`.

    Args:
        x: (..., D).
        projection: G, (R, D), of the dtype of x.

    Returns:
        (..., R).
    """
    return F.linear(x, projection) / len(projection) ** 0.5
