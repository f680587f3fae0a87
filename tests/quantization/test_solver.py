"""GPTQ, the search of ranges, and what may be repeated: golden vectors, identities, edges."""

import pytest
import torch

from hf_softext.quantization.baq.allocation import allocate
from hf_softext.quantization.baq.descent import descend, refit
from hf_softext.quantization.baq.gptq import factorize, gptq
from hf_softext.quantization.baq.grid import nearest
from hf_softext.quantization.baq.ranges import (
    NORMAL_LOSS,
    NORMAL_RANGE,
    authors_ranges,
    full_ranges,
    search_ranges,
)
from hf_softext.quantization.baq.solver import exchange, measure, solve
from hf_softext.quantization.baq.weight import QuantizedWeight, Settings

ONES = torch.ones(9)


def layer(rows=30, columns=45, tokens=200):
    """A weight and the Gram matrix of correlated inputs with uneven channels."""
    mixed = torch.randn(tokens, columns) @ (
        torch.eye(columns) + 0.3 * torch.randn(columns, columns)
    )
    inputs = mixed * (1.5 * torch.randn(columns)).exp()
    return torch.randn(rows, columns), inputs.T @ inputs


def output_loss(weight, gram, other):
    error = other - weight
    return float(((error @ gram) * error).sum())


def mixed_levels(columns):
    return (1 << (torch.arange(columns) % 5)).to(torch.int16)


@pytest.mark.parametrize("bits", ["2", "3", "4", "3 act-order"])
def test_the_authors_result(golden, bits):
    vectors = golden[bits]
    settings = Settings(
        bits=int(bits[0]), allocation="paper", act_order="act" in bits, clip=False, damp=0.01
    )
    weight, gram = vectors["W"], vectors["H"]
    factor = factorize(gram, 0.01, settings.act_order)
    sensitivity = measure(weight, gram, settings)
    expected = vectors["calib_loss_vec"].double()
    torch.testing.assert_close(sensitivity.losses[factor.order, 0], expected, rtol=1e-4, atol=1e-7)
    levels = allocate({"layer": sensitivity}, settings)["layer"]
    assert levels[factor.order].tolist() == vectors["levels"].round().int().tolist()
    ranges = authors_ranges(weight)
    codes, _ = gptq(
        weight[:, factor.order], factor.upper, levels[factor.order], ranges, ONES, True, 8
    )
    found = QuantizedWeight(codes, levels[factor.order], ranges, ONES, True).dequantize()
    torch.testing.assert_close(found[:, factor.order.argsort()], vectors["Q"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_size", [7, 16, 1000])
def test_blocks_do_not_change_the_result(block_size):
    weight, gram = layer()
    upper = factorize(gram, 0.01, True).upper
    shared = (weight, upper, mixed_levels(45), full_ranges(weight), ONES, False)
    one, losses = gptq(*shared, 1)
    other, same = gptq(*shared, block_size)
    assert (one != other).float().mean() < 2e-3
    torch.testing.assert_close(same.sum(), losses.sum(), rtol=1e-3, atol=0)


def test_losses_add_up_to_the_error_of_the_output():
    weight, gram = layer()
    factor = factorize(gram, 0.01, True)
    weight, levels = weight[:, factor.order], mixed_levels(45)
    codes, losses = gptq(weight, factor.upper, levels, full_ranges(weight), ONES, False, 128)
    found = QuantizedWeight(codes, levels, full_ranges(weight), ONES, False).dequantize()
    assert 2 * float(losses.sum()) == pytest.approx(
        output_loss(weight, factor.gram, found), rel=1e-4
    )


def test_gptq_with_unrelated_inputs_is_rounding():
    weight = torch.randn(9, 13)
    levels, ranges = mixed_levels(13), full_ranges(weight)
    codes, _ = gptq(weight, torch.eye(13), levels, ranges, ONES, False, 4)
    assert torch.equal(codes, nearest(weight, levels, ranges, ONES, False))


def test_gptq_beats_rounding_and_each_step_beats_the_one_before():
    weight, gram = layer(rows=64, columns=96, tokens=300)
    factor = factorize(gram, 0.01, True)
    weight, levels = weight[:, factor.order], torch.full((96,), 4)
    ranges, clip = search_ranges(weight, levels, factor.sensitivity)
    rounded = nearest(weight, levels, full_ranges(weight), ONES, False)
    first = QuantizedWeight(rounded, levels, full_ranges(weight), ONES, False)
    codes, _ = gptq(weight, factor.upper, levels, full_ranges(weight), ONES, False, 128)
    plain = QuantizedWeight(codes, levels, full_ranges(weight), ONES, False)
    codes, _ = gptq(weight, factor.upper, levels, ranges, clip, False, 128)
    clipped = QuantizedWeight(codes, levels, ranges, clip, False)
    fitted = QuantizedWeight(codes, levels, refit(weight, factor.gram, clipped), clip, False)
    swept = QuantizedWeight(
        descend(weight, factor.gram, fitted, 128), levels, fitted.ranges, clip, False
    )
    found = [first, plain, clipped, fitted, swept]
    losses = [output_loss(weight, factor.gram, one.dequantize()) for one in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[-3]


@pytest.mark.parametrize("block_size", [1, 10, 64])
def test_a_sweep_takes_the_best_level_of_each_column(block_size):
    weight, gram = layer(rows=5, columns=12)
    levels, ranges = mixed_levels(12), full_ranges(weight).half()
    found = QuantizedWeight(
        nearest(weight, levels, ranges, ONES, False), levels, ranges, ONES, False
    )
    expected = found.codes.clone()
    for column in range(12):
        for row in range(5):
            costs = []
            for code in range(int(levels[column])):
                expected[row, column] = code
                trial = QuantizedWeight(expected, levels, ranges, ONES, False).dequantize()
                costs.append(output_loss(weight[row : row + 1], gram, trial[row : row + 1]))
            expected[row, column] = min(range(len(costs)), key=costs.__getitem__)
    assert torch.equal(descend(weight, gram, found, block_size), expected)


def test_refitted_ranges_are_a_minimum():
    weight, gram = layer(rows=6, columns=20)
    levels = mixed_levels(20)
    ranges, clip = search_ranges(weight, levels, torch.ones(20))
    found = QuantizedWeight(
        nearest(weight, levels, ranges, clip, False), levels, ranges, clip, False
    )
    ends = refit(weight, gram, found)
    values = lambda r: QuantizedWeight(found.codes, levels, r, clip, False).dequantize()  # noqa: E731
    best = output_loss(weight, gram, values(ends))
    assert best < output_loss(weight, gram, values(ranges))
    for change in (0.97, 1.03):
        assert output_loss(weight, gram, values(change * ends)) > best


def test_normal_tables_are_those_of_a_normal_weight():
    weight = torch.randn(1, 200_000)
    for bits in (1, 2, 3, 5, 8):
        half = NORMAL_RANGE[bits]
        ranges, levels = torch.tensor([[half]]), torch.full((200_000,), 2**bits)
        found = QuantizedWeight(
            nearest(weight, levels, ranges, ONES, False), levels, ranges, ONES, False
        )
        loss = float((found.dequantize() - weight).square().mean())
        assert loss == pytest.approx(NORMAL_LOSS[bits], rel=0.03)


def test_exchange_keeps_the_sum_and_moves_bits_to_the_losers():
    levels = torch.full((10,), 8)
    losses = torch.ones(10, dtype=torch.float64)
    losses[:3] = 60
    changed = exchange(levels, losses, (1, 8))
    widths = [int(count - 1).bit_length() for count in changed.tolist()]
    assert sum(widths) == 30
    assert min(widths[:3]) > max(widths[3:])


@pytest.mark.parametrize("solver", ["gptq", "rtn"])
@pytest.mark.parametrize("clip", [True, False])
def test_solve_keeps_the_budget_and_reports_the_true_loss(solver, clip):
    weight, gram = layer()
    settings = Settings(bits=3.7, solver=solver, clip=clip)
    levels = allocate({"a": measure(weight, gram, settings)}, settings)["a"]
    found, outcome = solve(weight, gram, levels, settings)
    width = lambda counts: sum((count - 1).bit_length() for count in counts.tolist())  # noqa: E731
    assert width(found.levels) == width(levels)
    assert (found.codes.max(0).values < found.levels).all()
    energy = gram + outcome.damp * gram.diagonal().mean() * torch.eye(45)
    energy = energy if solver == "gptq" else torch.eye(45)
    relative = output_loss(weight, energy, found.dequantize()) / output_loss(
        weight, energy, 0 * weight
    )
    assert outcome.loss == pytest.approx(relative, rel=1e-3)
    if solver == "gptq":
        assert outcome.loss < outcome.uniform_loss


def test_eight_bits_are_nearly_exact():
    weight, gram = layer()
    found, outcome = solve(weight, gram, torch.full((45,), 256), Settings(allocation="uniform"))
    assert outcome.loss < 1e-4
    assert found.codes.max() == 255


def test_dead_columns_are_zero_and_harm_nobody():
    weight, gram = layer()
    dead = torch.arange(45) % 5 == 0
    gram[dead], gram[:, dead] = 0, 0
    settings = Settings(bits=3.5)
    sensitivity = measure(weight, gram, settings)
    assert (sensitivity.losses[dead] == 0).all()
    levels = allocate({"a": sensitivity}, settings)["a"]
    assert (levels[dead] == 1).all()
    found, outcome = solve(weight, gram, levels, settings)
    assert (found.dequantize()[:, dead] == 0).all()
    rest = ~dead
    alone, alone_outcome = solve(weight[:, rest], gram[rest][:, rest], levels[rest], settings)
    assert outcome.loss == pytest.approx(alone_outcome.loss, rel=0.05)
    assert alone.codes.shape == (30, 36)


@pytest.mark.parametrize("tokens", [3, 44])
def test_fewer_tokens_than_columns_are_damped(tokens):
    weight, gram = layer(tokens=tokens)
    found, outcome = solve(weight, gram, mixed_levels(45), Settings())
    assert found.dequantize().isfinite().all()
    assert 0 < outcome.damp <= 1


def test_a_singular_matrix_is_damped_harder():
    gram = torch.full((4, 4), 1.0)
    gram[0, 0] = 0.9
    assert factorize(gram, 1e-9, False).damp > 1e-3
    with pytest.raises(ValueError, match="stays singular with damp"):
        factorize(torch.tensor([[1.0, 1e9], [1e9, 1.0]]), 1e-9, False)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("solver", ["gptq", "rtn"])
def test_rows_without_spread(value, solver):
    weight, gram = layer()
    weight[3] = value
    found, _ = solve(weight, gram, mixed_levels(45), Settings(solver=solver))
    assert found.dequantize().isfinite().all()
    live = found.levels > 2
    assert (found.dequantize()[3, live] - value).abs().max() < 0.3


def test_inputs_that_are_all_zero_count_as_no_data():
    weight = torch.randn(4, 6)
    zero = measure(weight, torch.zeros(6, 6), Settings())
    assert torch.equal(zero.losses, measure(weight, None, Settings()).losses)
    found, _ = solve(weight, torch.zeros(6, 6), torch.full((6,), 16), Settings())
    torch.testing.assert_close(found.dequantize(), weight, rtol=0, atol=0.3)


@pytest.mark.parametrize("solver", ["gptq", "rtn"])
def test_a_row_of_zeros_stays_next_to_nothing(solver):
    weight, gram = layer()
    weight[3] = 0
    found, _ = solve(weight, gram, mixed_levels(45), Settings(solver=solver))
    assert found.dequantize()[3].abs().max() < 1e-6


def test_weights_beyond_float16_are_named():
    weight, gram = layer()
    weight[0, 0] = 1e30
    with pytest.raises(ValueError, match=r"weights of up to 1e\+30 cannot be quantized"):
        measure(weight, gram, Settings())
