"""Private means of bags: the noise that is asked for, what it costs, and the size of bags."""

import math

import pytest
import torch

from hf_softext.functional.label_dp import (
    bag_risk,
    optimal_bag_size,
    private_bag_means,
    release_epsilon,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_noise_it_is_the_clipped_mean():
    y, bag = torch.tensor([1.0, 9.0, -3.0, 0.5]), torch.tensor([4, 4, 9, 9])
    found = private_bag_means(y, bag, epsilon=math.inf, bound=2.0, generator=generator())
    assert found.tolist() == [1.5, 1.5, -0.75, -0.75]


def test_the_noise_is_laplace_of_the_right_scale():
    sizes = torch.tensor([1, 2, 5]).repeat(20_000)
    bag = torch.arange(len(sizes)).repeat_interleave(sizes)
    found = private_bag_means(
        torch.zeros(len(bag)), bag, epsilon=0.5, bound=3.0, generator=generator()
    )
    first = torch.cat([torch.tensor([True]), bag[1:] != bag[:-1]])
    for size in (1, 2, 5):
        noise, scale = found[first][sizes == size], 2 * 3.0 / (size * 0.5)
        assert noise.abs().mean().item() == pytest.approx(scale, rel=0.03)
        assert noise.square().mean().item() == pytest.approx(2 * scale**2, rel=0.06)
        for times in (1, 3):
            tail = (noise > times * scale).double().mean().item()
            assert tail == pytest.approx(0.5 * math.exp(-times), abs=0.006)


def test_a_bag_has_one_draw_and_the_seed_decides_it():
    y, bag = torch.randn(30), torch.arange(30) % 4
    keyword = {"epsilon": 1.0, "bound": 1.0}
    found = private_bag_means(y, bag, generator=generator(), **keyword)
    assert all(len(found[bag == one].unique()) == 1 for one in range(4))
    assert torch.equal(found, private_bag_means(y, bag, generator=generator(), **keyword))
    other = private_bag_means(y, bag, generator=generator(1), **keyword)
    assert (found != other).all()


def test_likelihoods_differ_by_no_more_than_epsilon():
    # the definition: of two data sets that differ in one response, at every outcome
    epsilon, bound, size = 0.7, 2.0, 3
    means = [
        private_bag_means(
            torch.tensor([value, 0.3, -1.0]),
            torch.zeros(3).long(),
            epsilon=math.inf,
            bound=bound,
            generator=generator(),
        )[0]
        for value in (-50.0, 50.0)
    ]
    scale = 2 * bound / (size * epsilon)
    outcome = torch.linspace(-9, 9, 1001).double()
    ratio = ((outcome - means[0]).abs() - (outcome - means[1]).abs()) / scale
    assert ratio.abs().max().item() == pytest.approx(epsilon)
    spent = release_epsilon(torch.tensor([scale]), torch.tensor([size]), bound=bound)
    assert spent == pytest.approx(epsilon)


def test_composition():
    scale, size = torch.tensor([4.0, 2.0, 1.0]), torch.tensor([1, 2, 8])
    # 0.5, 0.5 and 0.25 of disjoint bags
    assert release_epsilon(scale, size, bound=1.0) == 0.5
    assert release_epsilon(scale, size, bound=1.0, releases=3) == 1.5
    with pytest.raises(ValueError, match="at least one bag"):
        release_epsilon(scale[:0], size[:0], bound=1.0)


@pytest.mark.parametrize("size", [1, 2, 8, 20])
def test_the_risk_is_that_of_least_squares(size):
    # more bags than features, and fewer
    samples, features, noise, bound, epsilon = 400, 100, 0.5, 1.0, 4.0
    draw, errors = generator(size), []
    for _ in range(30):
        x = torch.randn(samples, features, generator=draw).double()
        truth = torch.randn(features, generator=draw).double()
        truth = 1.5 * truth / truth.norm()
        y = x @ truth + noise * torch.randn(samples, generator=draw).double()
        bags = samples // size
        mean_x = x.reshape(bags, size, features).mean(1)
        e = torch.empty(2, bags).double().exponential_(generator=draw)
        mean_y = y.reshape(bags, size).mean(1) + 2 * bound / (size * epsilon) * (e[0] - e[1])
        found = torch.linalg.pinv(mean_x) @ mean_y
        errors.append((found - truth).square().sum())
    expected = bag_risk(
        torch.tensor(size),
        samples=samples,
        features=features,
        noise=noise,
        bound=bound,
        epsilon=epsilon,
        signal=1.5,
    )
    assert torch.stack(errors).mean().item() == pytest.approx(expected.item(), rel=0.1)


def test_the_best_size():
    common = {"samples": 1000, "features": 100, "noise": 0.5, "bound": 3.0}
    assert optimal_bag_size(**common) == 1
    assert optimal_bag_size(epsilon=5.0, **common) == 1
    # as many features as samples is the worst of all
    square = common | {"features": 1000}
    assert bag_risk(torch.tensor(1), **square) == math.inf
    assert optimal_bag_size(**square) > 1
    # strong privacy: a few quiet bags
    size = optimal_bag_size(epsilon=0.5, **common)
    around = torch.tensor([1, size // 2, size, 1000])
    risk = bag_risk(around, epsilon=0.5, **common)
    assert 10 < size < 1000
    assert risk.argmin() == 2
    # as long as there are more bags than features, smaller is better
    rising = bag_risk(torch.arange(1, 10), epsilon=0.5, **common)
    assert (rising[1:] > rising[:-1]).all()


def test_what_is_refused():
    y, bag = torch.zeros(3), torch.zeros(3).long()
    keyword = {"epsilon": 1.0, "bound": 1.0, "generator": generator()}
    for name, value in (("epsilon", 0.0), ("bound", -1.0), ("bound", math.nan)):
        with pytest.raises(ValueError, match=f"{name}="):
            private_bag_means(y, bag, **keyword | {name: value})
    with pytest.raises(ValueError, match="one number a row"):
        private_bag_means(y, bag[:2], **keyword)
    with pytest.raises(ValueError, match="not finite"):
        private_bag_means(y / 0, bag, **keyword)
