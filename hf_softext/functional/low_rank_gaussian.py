"""The Gaussian kernel of N tokens through M landmarks: SOFT and SOFT++."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_softext.functional.gaussian import gaussian_kernel
from hf_softext.functional.newton_pinv import newton_pinv


class LowRank(NamedTuple):
    """A matrix (B, H, N, N) as a product: left (N, M), middle (M, M), right (M, N)."""

    left: Tensor
    middle: Tensor
    right: Tensor

    def apply(self, value: Tensor) -> Tensor:
        """The product with (B, H, N, Dv), in memory for N M numbers."""
        return self.left @ (self.middle @ (self.right @ value))

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.left @ self.middle @ self.right


def low_rank_gaussian(
    tokens: Tensor,
    landmarks: Tensor,
    *,
    norm: bool,
    iterations: int = 20,
    present: Tensor | None = None,
    valid: Tensor | None = None,
) -> LowRank:
    r"""The kernel matrix of the tokens, seen through landmarks.

    $$S \approx P A^+ P^\top, \qquad P_{ia} = e^{-\lVert t_i - l_a\rVert^2/2}, \qquad A_{ab} =
    e^{-\lVert l_a - l_b\rVert^2/2}$$

    and with `norm` (SOFT++) $D^{-1/2} A^+ D^{-1/2}$ in place of $A^+$, where D holds the row sums
    of A.

    Args:
        tokens: t, (B, H, N, D), float32 or float64, every scale already in it.
        landmarks: l, (B, H, M, D).
        norm: SOFT++ instead of SOFT.
        iterations: of the pseudo-inverse; see `newton_pinv`.
        present: bool (B, M): False for a landmark without a token; None: every one has some.
        valid: bool (B, N): False for a token that is padding, which has no weight and gets none.

    Returns:
        The three factors.

    Notes:
        The authors' SOFT++ starts the iteration with 2 in place of 1.8, which loses a matrix A
        close to the identity; see `newton_pinv`.

    Reference:
        J. Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", 2021, arXiv
        2110.11945; "Softmax-free Linear Transformers", 2024, arXiv 2207.03341.
    """
    left = gaussian_kernel(tokens, landmarks)
    middle = gaussian_kernel(landmarks, landmarks)
    if present is not None:
        # a landmark without a token is nobody's neighbour but its own
        left = left * present[:, None, None, :]
        pairs = (present[:, :, None] & present[:, None, :])[:, None]
        identity = torch.eye(middle.shape[-1], dtype=middle.dtype, device=middle.device)
        middle = torch.where(pairs, middle, identity)
    if valid is not None:
        left = left * valid[:, None, :, None]
    if norm:
        inverse = newton_pinv(middle, iterations, ridge=0.0, halve=True)
        root = middle.sum(-1).rsqrt()
        inverse = root[..., :, None] * inverse * root[..., None, :]
    else:
        inverse = newton_pinv(middle, iterations)
    return LowRank(left, inverse, left.transpose(-1, -2))
