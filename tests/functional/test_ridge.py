"""Ridge regression from sums, against the rows themselves."""

import numpy as np
import pytest
import torch

from hf_softext.functional.ridge import NormalEquations, solve_ridge

ROWS, WIDTH, OUTPUTS = 63, 12, 3


def data(rows=ROWS, width=WIDTH, seed=0):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, width, generator=draw, dtype=torch.float64) + 2.0
    return z, torch.randn(rows, OUTPUTS, generator=draw, dtype=torch.float64) - 1.0


def sums(z, y, parts=1):
    made = NormalEquations(z.shape[1], y.shape[1])
    for part in torch.arange(len(z)).tensor_split(parts):
        made.add(z[part], y[part])
    return made


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def ridge_reference(z, y, ridge, bias=True):
    """The same as a least-squares problem with rows for the penalty, which squares nothing."""
    z1 = np.concatenate((z.numpy(), np.ones((len(z), int(bias)))), 1)
    penalty = np.sqrt(ridge) * np.eye(z1.shape[1])[: z.shape[1]]
    zeros = np.zeros((len(penalty), y.shape[1]))
    found = np.linalg.lstsq(
        np.concatenate((z1, penalty)), np.concatenate((y.numpy(), zeros)), rcond=None
    )[0]
    weight = torch.from_numpy(found[: z.shape[1]].T)
    return weight, torch.from_numpy(found[-1]) if bias else torch.zeros(OUTPUTS).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.3, 50.0])
def test_it_is_the_least_squares_solution(ridge, bias):
    z, y = data()
    made = sums(z, y).solve(ridge, relative=False, bias=bias)
    for ours, theirs in zip(made, ridge_reference(z, y, ridge, bias), strict=True):
        close(ours, theirs)
    weight, shift = (part.requires_grad_() for part in made)
    loss = (z @ weight.T + shift - y).square().sum() + ridge * weight.square().sum()
    gradients = torch.autograd.grad(loss, (weight, shift), allow_unused=True)
    assert gradients[0].abs().max() < 1e-8
    if bias:
        assert gradients[1].abs().max() < 1e-8


def test_neither_parts_nor_order_nor_processes_matter():
    z, y = data(2500)
    expected = sums(z, y).solve()
    for parts in (3, 7, 2500):
        for ours, theirs in zip(sums(z, y, parts).solve(), expected, strict=True):
            close(ours, theirs, 1e-12)
    order = torch.randperm(len(z))
    halves = [sums(z[part], y[part]) for part in order.tensor_split(2)]
    gram, cross = halves[0].gram + halves[1].gram, halves[0].cross + halves[1].cross
    for ours, theirs in zip(solve_ridge(gram, cross), expected, strict=True):
        close(ours, theirs, 1e-12)


def test_twice_the_rows_need_twice_the_ridge_or_the_same_relative_one():
    z, y = data()
    twice = sums(z.repeat(2, 1), y.repeat(2, 1))
    for relative, factor in ((False, 2.0), (True, 1.0)):
        expected = sums(z, y).solve(0.7, relative)
        for ours, theirs in zip(twice.solve(0.7 * factor, relative), expected, strict=True):
            close(ours, theirs)
    # nor does a relative one ask in which unit the features are
    weight, bias = sums(z * 100, y).solve(0.7)
    close(weight * 100, expected[0])
    close(bias, expected[1])


def test_all_penalty_leaves_the_means():
    z, y = data()
    weight, bias = sums(z, y).solve(1e14)
    assert weight.abs().max() < 1e-12
    close(bias, y.mean(0))


def test_fewer_rows_than_features_are_interpolated():
    z, y = data(rows=9, width=20)
    with pytest.warns(UserWarning, match="linearly dependent"):
        weight, bias = sums(z, y).solve(0.0)
    close(z @ weight.T + bias, y, 1e-9)
    # the limit of a ridge that vanishes
    close(weight, ridge_reference(z, y, 1e-9)[0], 1e-7)


def test_dead_and_repeated_features():
    z, y = data()
    spoiled = torch.cat((z, torch.zeros(ROWS, 2).double(), z[:, :1], torch.ones(ROWS, 1)), 1)
    with pytest.warns(UserWarning, match="linearly dependent"):
        weight, bias = sums(spoiled, y).solve(0.0)
    close(spoiled @ weight.T + bias, torch.addmm(*_shift_first(z, y)), 1e-8)
    assert weight[:, WIDTH : WIDTH + 2].abs().max() < 1e-10
    # the least norm: what is there twice has half of the weight each
    close(weight[:, 0], weight[:, WIDTH + 2], 1e-8)
    # and with a ridge there is nothing to warn of
    sums(spoiled, y).solve(1e-3)


def _shift_first(z, y):
    weight, bias = ridge_reference(z, y, 0.0)
    return bias, z, weight.T


def test_features_that_never_change_leave_the_means():
    _, y = data()
    with pytest.warns(UserWarning, match="linearly dependent"):
        weight, bias = sums(torch.full((ROWS, 4), 0.3), y).solve()
    assert not weight.any()
    close(bias, y.mean(0))


def test_the_error_is_that_of_the_rows():
    z, y = data()
    made = sums(z, y, 5)
    weight, bias = made.solve()
    expected = (z @ weight.T + bias - y).square().mean().item()
    assert made.mean_squared_error(weight, bias) == pytest.approx(expected, rel=1e-9)
    assert made.rows == ROWS


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_refused_and_leaves_the_sums(bad):
    z, y = data()
    made = sums(z, y)
    before = made.gram.clone()
    z[3, 2] = bad
    with pytest.raises(ValueError, match="features hold NaN"):
        made.add(z, y)
    y[0, 0] = bad
    with pytest.raises(ValueError, match="targets hold NaN"):
        made.add(data()[0], y)
    assert torch.equal(made.gram, before)


def test_mistakes():
    z, y = data()
    made = sums(z, y)
    with pytest.raises(ValueError, match=r"features \(63, 11\) and targets"):
        made.add(z[:, :-1], y)
    with pytest.raises(ValueError, match="are needed"):
        made.add(z[:-1], y)
    for ridge in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge="):
            made.solve(ridge)
    with pytest.raises(ValueError, match="no rows"):
        NormalEquations(3, 2).solve()
    with pytest.raises(ValueError, match="features=0"):
        NormalEquations(0, 2)
