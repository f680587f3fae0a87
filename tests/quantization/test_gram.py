"""Gram matrices: right, and the same to the last bit in whatever order."""

import pytest
import torch

from hf_softext.quantization.baq.gram import Gram, settle


def sequences(count=7, columns=37, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1.75, 1.75, columns)
    return [
        (torch.randn(5 + index, columns, generator=generator) * spread).to(dtype)
        for index in range(count)
    ]


def summed(parts, first=None):
    gram = Gram(parts[0].shape[-1])
    if first is not None:
        gram.settle(first.square().sum(0))
    for part in parts:
        gram.add(part)
        settle({"one": gram})
    return gram


@pytest.mark.parametrize("columns", [1, 37, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_is_that_of_the_rows_in_each_column(columns, dtype):
    parts = sequences(columns=columns, dtype=dtype)
    rows = torch.cat(parts).double()
    expected = rows.T @ rows
    total = summed(parts).total()
    assert total.dtype == torch.float32
    assert torch.equal(total, total.T)
    # energies of columns differ by 10^7, and each is right in itself
    scale = expected.diagonal().sqrt()
    error = (total - expected).abs() / (scale[:, None] * scale)
    assert error.max() < 2e-6


def test_order_and_grouping_do_not_change_a_bit():
    parts = sequences()
    first = parts[0]
    forward = summed(parts).total()
    assert torch.equal(forward, summed(parts[::-1], first).total())
    # as two processes would
    halves = [summed(parts[::2]), summed(parts[1::2], first)]
    halves[0]._sum += halves[1]._sum
    assert torch.equal(forward, halves[0].total())
    # floats do differ
    floats = [part.T @ part for part in parts]
    assert not torch.equal(sum(floats), sum(floats[::-1]))


def test_a_column_that_wakes_up_late_is_counted():
    parts = sequences(columns=4)
    for part in parts[:3]:
        part[:, 2] = 0
    parts[4][:, 2] = 1e3
    rows = torch.cat(parts).double()
    torch.testing.assert_close(summed(parts).total().double(), rows.T @ rows, rtol=1e-5, atol=1e-3)


def test_far_more_than_the_first_sequence_is_not_lost():
    factors = (1e-9, 1, 1e6, 1e-9, 3, 1, 1)
    parts = [part * factor for part, factor in zip(sequences(), factors, strict=True)]
    gram = summed(parts)
    assert gram._shift > 0
    rows = torch.cat(parts).double()
    expected = rows.T @ rows
    scale = expected.diagonal().sqrt()
    error = (gram.total() - expected).abs() / (scale[:, None] * scale)
    assert error.max() < 2e-6


def test_dead_columns_are_exactly_zero_and_nothing_is_none():
    parts = sequences(columns=5)
    for part in parts:
        part[:, 3] = 0
    total = summed(parts).total()
    assert (total[3] == 0).all()
    assert (total.diagonal() > 0).sum() == 4
    assert Gram(3).total() is None
    silent = summed([torch.zeros(4, 3), torch.zeros(2, 3)])
    assert silent.tokens == 6
    assert torch.equal(silent.total(), torch.zeros(3, 3))


def test_tokens_of_all_dimensions_are_rows():
    inputs = torch.randn(2, 3, 8)
    gram = Gram(8)
    gram.add(inputs)
    assert gram.tokens == 6
    rows = inputs.reshape(-1, 8)
    torch.testing.assert_close(gram.total(), rows.T @ rows)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_what_is_not_finite_is_refused(value):
    inputs = torch.ones(2, 3)
    inputs[1, 2] = value
    with pytest.raises(ValueError, match="activations"):
        Gram(3).add(inputs)
