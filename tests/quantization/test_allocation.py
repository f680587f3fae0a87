"""How many bits a column gets: laws of the formulas, exactness of the greedy choice."""

import heapq
import itertools

import pytest
import torch

from hf_softext.quantization.baq.allocation import (
    allocate,
    closed_form,
    greedy,
    nominal_rate,
    packed_rate,
    paper_levels,
    water_filling,
)
from hf_softext.quantization.baq.packing import overhead_bits, plane_bits
from hf_softext.quantization.baq.weight import Sensitivity, Settings

LAW = 4.0 ** -torch.arange(9, dtype=torch.float64)


def coefficients(count: int, spread: float = 4.0) -> torch.Tensor:
    return (torch.randn(count, dtype=torch.float64) * spread).exp2()


def test_closed_form_makes_all_losses_equal_and_meets_the_average():
    c = coefficients(17)
    rates = closed_form(c, 2.5)
    losses = c * 4**-rates
    torch.testing.assert_close(losses, losses[:1].expand(17), rtol=1e-10, atol=0)
    assert rates.mean() == pytest.approx(2.5, abs=1e-12)
    # the gain over a uniform rate is the geometric over the arithmetic mean
    gain = losses.sum() / (c * 4**-2.5).sum()
    assert gain == pytest.approx(float(c.log().mean().exp() / c.mean()), rel=1e-10)


@pytest.mark.parametrize("form", [closed_form, water_filling])
def test_rates_follow_scale_ratio_and_order(form):
    c = coefficients(9, spread=0.5)
    rates = form(c, 3.0)
    torch.testing.assert_close(form(7 * c, 3.0), rates)
    torch.testing.assert_close(form(torch.full((5,), 0.3), 3.0), torch.full((5,), 3.0).double())
    order = torch.randperm(9)
    torch.testing.assert_close(form(c[order], 3.0), rates[order])
    c[4] *= 4
    raised = form(c, 3.0) - rates
    assert raised[4] - raised[3] == pytest.approx(1.0)


@pytest.mark.parametrize("form", [closed_form, water_filling])
def test_a_dead_column_takes_nothing_and_moves_no_mean(form):
    c = coefficients(8)
    alive = form(c, 2.0)
    with_dead = form(torch.cat([c, torch.zeros(3)]), 2.0)
    torch.testing.assert_close(with_dead[:8], alive)
    assert with_dead[8:].tolist() == [0, 0, 0]
    assert form(torch.zeros(2), 2.0).tolist() == [0, 0]


@pytest.mark.parametrize("average", [0.0, 0.3, 1.0, 4.0])
def test_water_filling_is_the_best_of_all_nonnegative_rates(average):
    c = coefficients(40)
    rates = water_filling(c, average)
    assert rates.min() >= 0
    assert rates.sum() == pytest.approx(average * 40, abs=1e-9)
    # the optimum's conditions: one level for all above zero, and nobody at zero is above it
    losses = c * 4**-rates
    if average > 0:
        level = losses[rates > 0]
        torch.testing.assert_close(level, level[:1].expand_as(level), rtol=1e-9, atol=0)
        assert (losses[rates == 0] <= level[0] * (1 + 1e-9)).all()


def convex_tables(count: int) -> torch.Tensor:
    falls = torch.rand(count, 8, dtype=torch.float64).sort(1, descending=True).values
    return 10 - torch.cat([torch.zeros(count, 1), falls.cumsum(1)], 1).double()


@pytest.mark.parametrize(("count", "budget", "bounds"), [(4, 10, (0, 8)), (5, 9, (1, 3))])
def test_greedy_is_the_best_of_all_whole_widths(count, budget, bounds):
    table = convex_tables(count)
    widths = greedy(table, torch.ones(count, dtype=torch.int64), budget, bounds)
    choices = itertools.product(range(bounds[0], bounds[1] + 1), repeat=count)
    best = min(
        sum(float(table[j, b]) for j, b in enumerate(choice))
        for choice in choices
        if sum(choice) <= budget
    )
    assert int(widths.sum()) == budget
    assert float(table.gather(1, widths[:, None]).sum()) == pytest.approx(best)


def heap_reference(table, costs, budget, low, high):
    """One bit at a time to the column whose loss falls most for its cost."""
    widths = [low] * len(table)
    left = budget - low * int(costs.sum())
    gain = lambda j: float(table[j, widths[j]] - table[j, widths[j] + 1]) / int(costs[j])  # noqa: E731
    heap = [(-gain(j), j) for j in range(len(table))]
    heapq.heapify(heap)
    while heap:
        _, j = heapq.heappop(heap)
        if costs[j] > left:
            continue
        widths[j] += 1
        left -= int(costs[j])
        if widths[j] < high:
            heapq.heappush(heap, (-gain(j), j))
    return widths


def test_greedy_equals_a_heap_when_columns_cost_differently():
    table = convex_tables(60)
    costs = torch.randint(1, 5, (60,))
    for budget in (200, 411, 733, 5000):
        found = greedy(table, costs, budget, (1, 6)).tolist()
        assert found == heap_reference(table, costs, budget, 1, 6)


def test_a_width_that_is_worse_than_its_neighbours_mixture_is_no_trap():
    table = torch.tensor([[9.0, 8.9, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]] * 2, dtype=torch.float64)
    assert greedy(table, torch.ones(2, dtype=torch.int64), 2, (0, 8)).tolist() == [2, 0]


def test_greedy_refuses_a_budget_below_its_bounds():
    with pytest.raises(ValueError, match="2 bits for every column cost 6, above 5"):
        greedy(convex_tables(3), torch.ones(3, dtype=torch.int64), 5, (2, 8))


def true_bits(sensitivities, levels):
    taken = weights = 0
    for name, one in sensitivities.items():
        widths = (levels[name].int() - 1).tolist()
        taken += plane_bits(one.rows) * sum(value.bit_length() for value in widths)
        taken += overhead_bits(one.rows, len(widths))
        weights += one.rows * len(widths)
    return taken / weights


@pytest.fixture
def sensitivities():
    found = {
        "wide": Sensitivity(40, coefficients(64)[:, None] * LAW),
        "tall": Sensitivity(100, coefficients(48)[:, None] * LAW * 30),
    }
    found["wide"].losses[5] = 0
    return found


@pytest.mark.parametrize("allocation", ["model", "layer"])
def test_bits_count_everything_and_are_used_up(sensitivities, allocation):
    settings = Settings(bits=4.0, allocation=allocation)
    levels = allocate(sensitivities, settings)
    assert levels["wide"][5] == 1
    bits = true_bits(sensitivities, levels)
    # less than one column's bit is left over in each module
    assert 4.0 - 0.05 < bits <= 4.0
    widths = [int(level - 1).bit_length() for level in levels["tall"].tolist()]
    assert min(widths) >= 1
    assert max(widths) <= 8


def test_layers_compete_unless_each_has_its_own_average(sensitivities):
    across = allocate(sensitivities, Settings(bits=4.0))
    within = allocate(sensitivities, Settings(bits=4.0, allocation="layer"))
    assert packed_rate(across["tall"]) > packed_rate(within["tall"]) + 0.5


def test_uniform_gives_one_width_and_nothing_to_dead_columns(sensitivities):
    levels = allocate(sensitivities, Settings(bits=3, allocation="uniform"))
    assert set(levels["tall"].tolist()) == {8}
    assert sorted(set(levels["wide"].tolist())) == [1, 8]


@pytest.mark.parametrize("allocation", ["model", "layer"])
def test_infeasible_bits_name_their_bounds(sensitivities, allocation):
    with pytest.raises(ValueError, match=r"bits=1\.5 cannot be reached.*take from .* to .* bits"):
        allocate(sensitivities, Settings(bits=1.5, bit_range=(2, 8), allocation=allocation))


def test_more_bits_than_columns_may_take_are_refused(sensitivities):
    with pytest.raises(ValueError, match=r"bits=5 cannot be reached.*take from"):
        allocate(sensitivities, Settings(bits=5, bit_range=(1, 3)))


def test_levels_of_the_authors(golden):
    for bits, vectors in golden.items():
        levels = paper_levels(vectors["calib_loss_vec"], int(bits[0]))
        assert levels.tolist() == vectors["levels"].round().int().tolist()
        assert nominal_rate(levels) == pytest.approx(float(vectors["mean_log2_levels"]), abs=1e-5)
        # what is reported cannot be packed
        assert packed_rate(levels) > nominal_rate(levels) + 0.3


def test_dead_columns_raise_the_authors_rate():
    losses = coefficients(24, spread=0.3).float()
    before = nominal_rate(paper_levels(losses, 2))
    losses[::4] = 0
    alive = torch.arange(24) % 4 != 0
    after = nominal_rate(paper_levels(losses, 2)[alive])
    assert before == pytest.approx(2, abs=0.1)
    assert after > 3
