"""Landmarks, and the kernel matrix through them."""

import pytest
import torch
from torch import Tensor

from hf_softext.functional.gaussian import gaussian_kernel
from hf_softext.functional.landmarks import grid_landmarks, grid_segments, membership, segments
from hf_softext.functional.low_rank_gaussian import low_rank_gaussian

CPU = torch.device("cpu")


def tokens(*shape: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("count", "landmarks"), [(10, 3), (7, 7), (4, 6), (197, 49), (1, 1)])
def test_runs_are_of_nearly_equal_length(count: int, landmarks: int) -> None:
    found = segments(count, landmarks, None, CPU)
    sizes = found[0].bincount(minlength=landmarks)
    assert (found.diff() >= 0).all()
    assert sizes[: min(count, landmarks)].min() >= 1
    assert sizes.max() - sizes[: min(count, landmarks)].min() <= 1
    # and the same for the valid tokens of a longer sequence
    valid = torch.zeros(1, count + 5, dtype=torch.bool)
    valid[0, torch.randperm(count + 5)[:count]] = True
    assert torch.equal(segments(count + 5, landmarks, valid, CPU)[valid], found[0])


def test_cells_of_an_odd_grid() -> None:
    # 5 x 7 in cells of 2 x 2, after two tokens of their own
    assert grid_landmarks(37, 12, (5, 7)) == (2, 2)
    segment = grid_segments((5, 7), 2, 2, CPU)
    assert segment[0, :9].tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5]
    assert segment[0, -7:].tolist() == [10, 10, 11, 11, 12, 12, 13]
    sizes = membership(segment, 14, None).sum(-1)
    assert sizes.tolist() == [[1, 1, 4, 4, 4, 2, 4, 4, 4, 2, 2, 2, 2, 1]]


@pytest.mark.parametrize(
    ("grid", "landmarks", "side"),
    [((56, 56), 49, 8), ((28, 28), 49, 4), ((14, 14), 49, 2), ((7, 7), 49, 1), ((3, 50), 2, 25)],
)
def test_side_is_the_smallest_that_does(grid: tuple, landmarks: int, side: int) -> None:
    assert grid_landmarks(grid[0] * grid[1], landmarks, grid) == (side, 0)


@pytest.mark.parametrize("count", [195, 213])
def test_grid_that_does_not_fit(count: int) -> None:
    with pytest.raises(ValueError, match=rf"grid=\[14, 14\] has 196 cells.* {count} tokens"):
        grid_landmarks(count, 49, (14, 14))


def test_all_tokens_as_landmarks_give_the_kernel() -> None:
    t = tokens(2, 3, 10, 6)
    kernel = gaussian_kernel(t, t)
    assert torch.linalg.cond(kernel).max() < 100
    # without a ridge, and converged
    factors = low_rank_gaussian(t, t, norm=True, iterations=40)
    root = kernel.sum(-1).sqrt()
    undone = root[..., :, None] * factors.middle * root[..., None, :]
    torch.testing.assert_close(kernel @ undone @ kernel, kernel)
    # the ridge of SOFT is what is left
    assert (low_rank_gaussian(t, t, norm=False).dense() - kernel).abs().max() < 0.01


@pytest.mark.parametrize("norm", [False, True])
def test_matrix_is_symmetric_and_its_product_associative(norm: bool) -> None:
    t, landmarks, value = tokens(2, 2, 20, 4), tokens(2, 2, 5, 4), tokens(2, 2, 20, 3)
    factors = low_rank_gaussian(t, landmarks, norm=norm)
    dense = factors.dense()
    torch.testing.assert_close(dense, dense.mT)
    torch.testing.assert_close(factors.apply(value), dense @ value)
    # written out
    p, a = gaussian_kernel(t, landmarks), gaussian_kernel(landmarks, landmarks)
    if norm:
        d = torch.diag_embed(a.sum(-1).rsqrt())
        expected = p @ d @ torch.linalg.pinv(a) @ d @ p.mT
    else:
        expected = p @ torch.linalg.inv(a + 0.01 * torch.eye(5)) @ p.mT
    torch.testing.assert_close(dense, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
def test_identical_and_distant_tokens(norm: bool) -> None:
    same = torch.ones(1, 1, 40, 8)
    dense = low_rank_gaussian(same, same[:, :, :6], norm=norm).dense()
    assert dense.isfinite().all()
    # everybody is everybody's neighbour: all ones, and with D = 6 a sixth of it
    torch.testing.assert_close(
        dense, torch.full_like(dense, 1 / 6 if norm else 1.0), atol=5e-3, rtol=0
    )
    far = 100 * torch.eye(6)[None, None]
    identity = low_rank_gaussian(far, far, norm=norm).dense()
    torch.testing.assert_close(identity, torch.eye(6)[None, None], atol=0.011, rtol=0)


def test_gradients_of_the_authors_backward() -> None:
    # against autograd through a converged inverse of the same matrix
    t, landmarks = (x.requires_grad_() for x in (tokens(1, 1, 9, 4), tokens(1, 1, 4, 4)))
    value, upstream = tokens(1, 1, 9, 2), tokens(1, 1, 9, 2)
    ours = low_rank_gaussian(t, landmarks, norm=False, iterations=30).apply(value)
    p, a = gaussian_kernel(t, landmarks), gaussian_kernel(landmarks, landmarks)
    theirs = p @ torch.linalg.inv(a + 0.01 * torch.eye(4)) @ (p.mT @ value)
    gradients = [torch.autograd.grad(x, (t, landmarks), upstream) for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_missing_landmark_is_as_if_there_were_none() -> None:
    t, landmarks = tokens(1, 2, 9, 4), tokens(1, 2, 4, 4)
    present = torch.tensor([[True, False, True, True]])
    for norm in (False, True):
        dense = low_rank_gaussian(t, landmarks, norm=norm, present=present).dense()
        alone = low_rank_gaussian(t, landmarks[:, :, present[0]], norm=norm).dense()
        torch.testing.assert_close(dense, alone)
