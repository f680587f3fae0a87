"""Which landmark a token belongs to, where landmarks are means of a few neighbouring tokens."""

import torch
from torch import Tensor


def segments(tokens: int, landmarks: int, valid: Tensor | None, device: torch.device) -> Tensor:
    r"""Cut a sequence into runs of nearly equal length.

    With r the rank of a token among the n valid ones and M landmarks, $\lfloor r M / \max(n, M)
    \rfloor$: no more than one token in a run where there are fewer tokens than landmarks.

    Args:
        tokens: N.
        landmarks: M.
        valid: bool (B, N), or None where every token is.
        device: of the result.

    Returns:
        int64 (1, N) or (B, N), from 0 to M - 1; of no meaning where not valid.
    """
    if valid is None:
        rank, count = torch.arange(tokens, device=device)[None], tokens
        return rank * landmarks // max(count, landmarks)
    rank = valid.cumsum(-1) - 1
    count = valid.sum(-1, keepdim=True).clamp(min=landmarks)
    return (rank * landmarks).div(count, rounding_mode="floor").clamp(min=0)


def grid_landmarks(tokens: int, landmarks: int, grid: tuple[int, int]) -> tuple[int, int]:
    """The side of the square cells of a grid, and the number of tokens before the grid.

    The smallest side with which the grid has no more than `landmarks` cells; cells at the right and
    lower edge may be smaller.

    Raises:
        ValueError: the sequence is shorter than the grid, or has more than 16 tokens before it.
    """
    height, width = grid
    prefix = tokens - height * width
    if not 0 <= prefix <= 16:
        raise ValueError(
            f"grid={[height, width]} has {height * width} cells, but there are {tokens} tokens: up "
            f"to 16 may come before the grid (a class token, registers). Give the grid of patches "
            f"that the model sees, or leave `grid` out."
        )
    side = 1
    while -(-height // side) * -(-width // side) > landmarks:
        side += 1
    return side, prefix


def grid_segments(grid: tuple[int, int], side: int, prefix: int, device: torch.device) -> Tensor:
    """The cell of each token of a grid, in rows; each token before the grid is its own.

    Returns:
        int64 (1, N), from 0 to prefix + ceil(h / side) ceil(w / side) - 1.
    """
    rows, columns = (torch.arange(size, device=device) // side for size in grid)
    cells = rows[:, None] * -(-grid[1] // side) + columns
    first = torch.arange(prefix, device=device)
    return torch.cat([first, prefix + cells.flatten()])[None]


def membership(segment: Tensor, landmarks: int, valid: Tensor | None) -> Tensor:
    """Which tokens make up a landmark.

    Args:
        segment: int64 (1 or B, N), the landmark of each token.
        landmarks: M.
        valid: bool (B, N), or None where every token is.

    Returns:
        bool (1 or B, M, N).
    """
    members = segment[:, None, :] == torch.arange(landmarks, device=segment.device)[:, None]
    return members if valid is None else members & valid[:, None, :]
