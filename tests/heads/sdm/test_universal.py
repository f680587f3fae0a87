"""The earlier estimator: each of its steps against the formula."""

import math
from statistics import median

import pytest
import torch

from hf_softext.functional.empirical_cdf import class_lists
from hf_softext.heads.sdm.universal import (
    bin_medians,
    offsets_over_splits,
    output_quantiles,
    rescale,
    spread_over_splits,
    train_rescaling,
)


def test_quantiles_reach_one_at_the_highest_output():
    lists = class_lists(torch.tensor([0.2, 0.4, 0.9, 0.5]), torch.tensor([0, 0, 0, 2]), 3)
    probs = torch.tensor([[0.1, 1.0, 0.5], [0.4, 0.0, 0.4], [0.89, 0.5, 0.6], [0.95, 0.2, 0.1]])
    expected = [[0, 0, 1], [1 / 3, 0, 0], [2 / 3, 0, 1], [1, 0, 0]]
    torch.testing.assert_close(output_quantiles(lists, probs), torch.tensor(expected))


def test_rescaling_is_the_formula():
    v, q = torch.rand(8, 3), torch.randint(0, 50, (8,)).float()
    prediction, weight = torch.randint(3, (8,)), torch.randn(3, 3)
    scaled, outputs, flipped = rescale(v, q, prediction, weight)
    for row in range(8):
        expected = float(v[row, prediction[row]]) * math.log(2 + float(q[row]))
        assert float(scaled[row]) == pytest.approx(expected, rel=1e-6)
        powers = (2 + scaled[row]) ** (weight @ v[row])
        torch.testing.assert_close(outputs[row], powers / powers.sum())
        assert bool(flipped[row]) == (int(powers.argmax()) != int(prediction[row]))


def test_training_is_adam_on_the_loss():
    v, q, y = torch.rand(30, 3), torch.rand(30) * 5, torch.randint(3, (30,))
    found = train_rescaling(
        v,
        q,
        y,
        torch.Generator().manual_seed(3),
        epochs=4,
        patience=10,
        learning_rate=0.02,
        batch_size=7,
    )
    draw = torch.Generator().manual_seed(3)
    weight = ((2 * torch.rand((3, 3), generator=draw) - 1) / math.sqrt(3)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    best, lowest = None, math.inf
    for _ in range(4):
        total = 0.0
        for part in torch.randperm(30, generator=draw).split(7):
            base = (2 + q[part]).log()[:, None]
            each = torch.log_softmax(base * (v[part] @ weight.T), 1) / base
            loss = -each.gather(1, y[part, None])
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            total += float(loss.detach().sum())
        if total < lowest:
            best, lowest = weight.detach().clone(), total
    torch.testing.assert_close(found, best, atol=1e-6, rtol=1e-5)


def test_training_ends_when_it_no_longer_helps():
    v, q, y = torch.rand(20, 2), torch.rand(20), torch.randint(2, (20,))
    options = {"patience": 2, "learning_rate": 5.0, "batch_size": 20}
    some, many = (
        train_rescaling(v, q, y, torch.Generator().manual_seed(0), epochs=count, **options)
        for count in (500, 100_000)
    )
    assert torch.equal(some, many)


def test_medians_of_cells():
    outputs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    similarity = torch.tensor([1.2, 1.9, 2.0, 0.4, 1.5])
    is_ood = torch.tensor([False, False, False, True, True])
    found = bin_medians(outputs, similarity, is_ood, torch.tensor([0, 0, 0, 1, 1]), 4)
    assert found[0].tolist()[1:3] == pytest.approx([0.85, 0.6])
    assert float(found[1, 0]) == pytest.approx(median([0.7, 0.45]))
    assert int(found.isnan().sum()) == 5


def test_spread_over_splits_is_a_cauchy_quantile():
    each = [2.0, 2.5, 4.0]
    shift = 0.5 * math.tan(math.pi * 0.45)
    assert spread_over_splits(2.5, each, 0.95) == pytest.approx(2.5 + shift)
    assert spread_over_splits(2.5, [2.5], 0.95) == 2.5
    # most splits found none: there is no spread to speak of, and the best one stands
    assert spread_over_splits(2.5, [2.5, math.inf, math.inf], 0.95) == 2.5
    assert spread_over_splits(math.inf, [math.inf] * 3, 0.95) == math.inf
    medians = torch.tensor([[[0.5, 0.8]], [[0.7, math.nan]], [[0.6, math.nan]]])
    found = offsets_over_splits(medians, 0.95)
    assert found.tolist()[0] == pytest.approx([0.1 * math.tan(math.pi * 0.45), 0.0], rel=1e-5)
