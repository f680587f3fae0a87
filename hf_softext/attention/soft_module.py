"""SOFT's own attention module, whose landmarks are a convolution of the queries."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_softext.functional.low_rank_gaussian import low_rank_gaussian
from hf_softext.functional.without_autocast import without_autocast


class SoftKernel(nn.Module):
    r"""Low-rank Gaussian attention of tokens on a grid, with learned landmarks.

    $$t = q / D^{1/4}, \qquad l = \mathrm{GELU}(\mathrm{LayerNorm}(\mathrm{Conv}(t))), \qquad O = P
    A^+ P^\top V + \mathrm{DepthwiseConv}(V)$$

    with P and A as in `hf_softext.functional.low_rank_gaussian`. The first convolution has kernel
    and stride `ratio` and is shared by the heads; the second has one filter a head.

    Args:
        head_dim: D.
        heads: H.
        ratio: side of the square of tokens that makes a landmark; the paper has 8, 4 and 2 in the
            stages of its models.
        conv_size: side of the filters on the values, odd; 0 for none. The paper has 9, 5 and 3.
        norm: SOFT++ instead of SOFT.
        iterations: of the pseudo-inverse.

    Raises:
        ValueError: an even `conv_size`, or a number that is too small.

    Notes:
        In float32 (float64 for float64 inputs) also under autocast, and the gradient of the
        pseudo-inverse is taken in one step; the authors' SOFT++ differentiates through every
        iteration. A grid that `ratio` does not divide is filled up with zeros, where the authors'
        code leaves the rest out. Tokens before the grid (a class token) are landmarks as they are,
        and the second convolution leaves them out; the authors' models have none here.
    """

    def __init__(
        self,
        head_dim: int,
        heads: int,
        ratio: int,
        conv_size: int,
        norm: bool = False,
        iterations: int = 20,
    ):
        super().__init__()
        for name, value in {"heads": heads, "ratio": ratio, "iterations": iterations}.items():
            if value < 1:
                raise ValueError(f"{name}={value} is not allowed: a whole number from 1.")
        if conv_size < 0 or (conv_size % 2 == 0 and conv_size > 0):
            raise ValueError(f"conv_size={conv_size} is not allowed: an odd number, or 0 for none.")
        self.ratio, self.norm, self.iterations = ratio, norm, iterations
        self.landmark_conv = nn.Conv2d(head_dim, head_dim, ratio, stride=ratio, bias=False)
        self.landmark_norm = nn.LayerNorm(head_dim)
        self.conv = None
        if conv_size:
            self.conv = nn.Conv2d(
                heads, heads, conv_size, padding=conv_size // 2, groups=heads, bias=False
            )

    def forward(self, query: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attend.

        Args:
            query: (B, H, N, D), also the key; the last h w tokens are the grid, in rows.
            value: (B, H, N, D).
            grid: h and w.

        Returns:
            (B, H, N, D), in the dtype of the query.

        Raises:
            ValueError: fewer tokens than the grid has.
        """
        prefix = query.shape[2] - grid[0] * grid[1]
        if prefix < 0:
            raise ValueError(f"grid={grid} has more cells than the {query.shape[2]} tokens.")
        with without_autocast(query):
            wide = torch.float64 if query.dtype == torch.float64 else torch.float32
            tokens, values = query.to(wide) * query.shape[-1] ** -0.25, value.to(wide)
            factors = low_rank_gaussian(
                tokens,
                torch.cat([tokens[:, :, :prefix], self._landmarks(tokens[:, :, prefix:], grid)], 2),
                norm=self.norm,
                iterations=self.iterations,
            )
            output = factors.apply(values)
            if self.conv is not None:
                output = output + F.pad(
                    _local(self.conv, values[:, :, prefix:], grid), (0, 0, prefix, 0)
                )
        return output.to(query.dtype)

    def _landmarks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        wide, (batch, heads, _, dim) = tokens.dtype, tokens.shape
        image = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        below, right = (-size % self.ratio for size in grid)
        image = F.pad(image, (0, right, 0, below))
        pooled = F.conv2d(image, self.landmark_conv.weight.to(wide), stride=self.ratio)
        landmarks = pooled.flatten(2).transpose(1, 2).reshape(batch, heads, -1, dim)
        norm = self.landmark_norm
        weight, bias = norm.weight.to(wide), norm.bias.to(wide)
        return F.gelu(F.layer_norm(landmarks, (dim,), weight, bias, norm.eps))


class SoftAttention(nn.Module):
    """Self-attention of image tokens with SOFT or SOFT++: the paper's module.

    One projection makes both query and key. Time and memory grow with the number of tokens times
    the number of landmarks.

    Args:
        dim: width of the tokens.
        heads: H, a divisor of `dim`.
        ratio: side of the square of tokens that makes a landmark.
        conv_size: side of the filters on the values, odd; 0 for none.
        norm: SOFT++ instead of SOFT.
        iterations: of the pseudo-inverse; the paper's is 20.

    Raises:
        ValueError: `heads` does not divide `dim`; and as `SoftKernel`.

    Reference:
        J. Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", 2021, arXiv
        2110.11945; "Softmax-free Linear Transformers", 2024, arXiv 2207.03341. `SoftKernel` is
        compared with the authors' code for SOFT, outputs and gradients.

    Example:
        ```python
        attention = SoftAttention(dim=64, heads=2, ratio=8, conv_size=9)
        out = attention(torch.randn(1, 56 * 56, 64))  # 49 landmarks
        ```
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ratio: int,
        conv_size: int,
        norm: bool = False,
        iterations: int = 20,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}.")
        self.heads = heads
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.kernel = SoftKernel(dim // heads, heads, ratio, conv_size, norm, iterations)

    def forward(self, hidden_states: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Attend.

        Args:
            hidden_states: (B, N, dim), the tokens of a grid in rows, after any that come before it.
            grid: height and width; None: all tokens, as a square.

        Returns:
            (B, N, dim).

        Raises:
            ValueError: no grid, and N is no square number; or a grid larger than N.
        """
        if grid is None:
            side = math.isqrt(hidden_states.shape[1])
            if side * side != hidden_states.shape[1]:
                raise ValueError(
                    f"{hidden_states.shape[1]} tokens are no square: give grid=(height, width)."
                )
            grid = (side, side)
        query, value = (
            proj(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.v_proj)
        )
        return self.o_proj(self.kernel(query, value, grid).transpose(1, 2).flatten(2))


def _local(conv: nn.Conv2d, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """A depthwise convolution of the values (B, H, N, D) over their grid."""
    batch, heads, _, dim = value.shape
    image = value.permute(0, 3, 1, 2).reshape(batch * dim, heads, *grid)
    weight = conv.weight.to(value.dtype)
    image = F.conv2d(image, weight, padding=conv.padding, groups=heads)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return image.reshape(batch, dim, heads, -1).permute(0, 2, 3, 1)
