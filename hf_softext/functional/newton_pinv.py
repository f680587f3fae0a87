"""The pseudo-inverse of a positive semi-definite matrix by Newton's iteration, with its backward
pass in one step."""

import torch
from torch import Tensor


def newton_pinv(
    matrix: Tensor,
    iterations: int = 20,
    *,
    ridge: float = 0.01,
    start: float = 1.8,
    halve: bool = False,
) -> Tensor:
    r"""An approximate inverse of each matrix.

    $$V_0 = \alpha P, \qquad V_{k+1} = 2 V_k - V_k P V_k, \qquad P = A + \rho I, \qquad \alpha =
    \mathrm{start} / (\max_i \textstyle\sum_j |A_{ij}|)^2$$

    In closed form, with the eigenpairs $(\lambda, u)$ of P:

    $$V_T = \sum_\lambda \frac{1 - (1 - \alpha\lambda^2)^{2^T}}{\lambda}\, u u^\top$$

    so that T iterations filter the spectrum: with T = 20 an eigenvalue below about 1e-3 of the
    largest stays close to 0 in the inverse, which makes it a regularised pseudo-inverse.

    The gradient is that of a converged inverse, taken once: $\bar A = -Y^\top \bar Y Y^\top$ with
    $Y = V_T$. No iteration is kept for it.

    Args:
        matrix: A, (..., M, M), symmetric positive semi-definite, float32 or float64.
        iterations: T; the paper's is 20.
        ridge: rho. The authors' code has 0.01 for SOFT and 0 for SOFT++.
        start: 1.8 in the authors' code for SOFT, 2 for SOFT++.
        halve: halve alpha, at most ten times, while the largest column sum of $|I - P V_0|$ is
            above 1.01, as the authors' code for SOFT++ does.

    Returns:
        (..., M, M).

    Notes:
        $\alpha\lambda^2$ has to stay below 2. With start = 2 the identity, to which A comes close
        where landmarks are far apart, is just not below: its V is 0 from the first iteration on.
        `low_rank_gaussian` therefore takes 1.8 for SOFT++ too.

        Every matrix has an alpha of its own. The authors' code for SOFT++ takes one for the whole
        batch, so that a result there depends on the other rows; and it differentiates through every
        iteration.

    Reference:
        J. Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", 2021, arXiv
        2110.11945, and "Softmax-free Linear Transformers", 2024, arXiv 2207.03341. Constants from
        the authors' code; the closed form is this package's own.
    """
    with torch.no_grad():
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        alpha = start / matrix.abs().sum(-1).amax(-1)[..., None, None].square()
        regular = matrix + ridge * identity
        if halve:
            square = torch.matmul(regular, regular)
            for _ in range(10):
                residual = (identity - alpha * square).abs().sum(-2).amax(-1)[..., None, None]
                alpha = torch.where(residual > 1.01, 0.5 * alpha, alpha)
        inverse = alpha * regular
        for _ in range(iterations):
            inverse = 2.0 * inverse - inverse @ regular @ inverse
    # 0, with the derivative that is wanted
    change = matrix - matrix.detach()
    return inverse - inverse @ change @ inverse
