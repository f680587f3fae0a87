"""Bags: limits, identities, what is counted and refused, and the shrinkage of least squares."""

import pytest
import torch
import torch.nn.functional as F

from hf_softext.losses.aggregate import AggregateLoss

BAGS = torch.tensor([40, 7, 40, 7, 7, 3, 40, 40])
LEVELS = ["bag", "instance", "mix"]


def batch(base="mse", classes=3):
    z = torch.randn(8, classes, dtype=torch.float64).mul(2).requires_grad_()
    y = torch.randn(41, classes, dtype=torch.float64)
    return z, (y if base == "mse" else y.softmax(-1))[BAGS]


def by_loops(z, y, base, rho):
    total = 0.0
    for bag in BAGS.unique():
        member, label = z[bag == BAGS], y[bag == BAGS][0]
        if base == "mse":
            whole = F.mse_loss(member.mean(0), label)
            single = torch.stack([F.mse_loss(f, label) for f in member]).mean()
        else:
            whole = -(label * member.softmax(-1).mean(0).log()).sum()
            single = torch.stack([F.cross_entropy(f, label) for f in member]).mean()
        total = total + (1 - rho) * whole + rho * single
    return total / len(BAGS.unique())


@pytest.mark.parametrize("base", ["mse", "ce"])
@pytest.mark.parametrize(("level", "rho"), [("bag", 0.0), ("instance", 1.0), ("mix", 0.3)])
def test_equals_a_loop_over_bags(level, rho, base):
    z, y = batch(base)
    loss = AggregateLoss(level, rho=0.3, base=base)
    found, expected = loss(z, y, bag_id=BAGS), by_loops(z, y, base, rho)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, z)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("base", ["mse", "ce"])
def test_instances_are_the_bag_and_a_penalty(base):
    z, y = batch(base)
    bag, instance = (AggregateLoss(level, base=base)(z, y, bag_id=BAGS) for level in LEVELS[:2])
    assert instance > bag
    if base == "mse":
        spread = [z[bag == BAGS].var(0, correction=0).mean() for bag in BAGS.unique()]
        torch.testing.assert_close(instance - bag, torch.stack(spread).mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_bags_of_one_row_are_the_ordinary_loss(level):
    z, y = batch()
    found = AggregateLoss(level)(z, y, bag_id=torch.randperm(8))
    torch.testing.assert_close(found, F.mse_loss(z, y))
    torch.testing.assert_close(AggregateLoss(level).eval()(z, y), F.mse_loss(z, y))
    shares, hard = y.softmax(-1), y.argmax(-1)
    loss = AggregateLoss(level, base="ce").eval()
    torch.testing.assert_close(loss(z, shares), F.cross_entropy(z, shares))
    torch.testing.assert_close(loss(z, hard), F.cross_entropy(z, hard))
    # responses of one number are shaped as torch has them, or in a column
    for values in (y[:, 0], y[:, :1]):
        torch.testing.assert_close(
            AggregateLoss(level).eval()(z[:, :1], values), F.mse_loss(z[:, 0], y[:, 0])
        )


def test_what_the_sum_is_divided_by():
    z, y = batch()
    loss = AggregateLoss("mix")
    assert loss.count(y, bag_id=BAGS) == 3
    y[BAGS == 7] = -100
    y[0] = -100
    assert loss.count(y, bag_id=BAGS) == 2
    assert loss.count(y) == 4
    kept = y[:, 0] != -100
    torch.testing.assert_close(
        loss(z, y, bag_id=BAGS), loss(z[kept], y[kept], bag_id=BAGS[kept]), rtol=1e-12, atol=0
    )
    weight = torch.tensor([9.0, 9, 2, 9, 9, 4, 0, 1])
    assert loss.count(y, weight, bag_id=BAGS) == 1 + 4
    assert loss.count(torch.full((2, 3), -100.0), bag_id=torch.tensor([1, 2])) == 0
    shaped = loss(z.reshape(2, 4, 3), y.reshape(2, 4, 3), bag_id=BAGS.reshape(2, 4))
    torch.testing.assert_close(shaped, loss(z, y, bag_id=BAGS))


@pytest.mark.parametrize("base", ["mse", "ce"])
def test_whole_bags_may_come_in_micro_batches_of_any_order(base):
    z, y = batch(base)
    loss = AggregateLoss("mix", base=base)
    found = loss(z, y, bag_id=BAGS)
    parts = [BAGS == 40, BAGS != 40]
    counts = sum(loss.count(y[part], bag_id=BAGS[part]) for part in parts)
    pieces = [loss(z[p], y[p], bag_id=BAGS[p], num_items=counts) for p in parts]
    torch.testing.assert_close(sum(pieces), found)
    order = torch.randperm(8)
    torch.testing.assert_close(loss(z[order], y[order], bag_id=BAGS[order]), found)


def test_a_bag_that_is_all_wrong_stays_finite():
    z = torch.tensor([[1e4, -1e4], [9e3, -9e3]], requires_grad=True)
    value = AggregateLoss(base="ce")(z, torch.tensor([[0.0, 1.0]] * 2), bag_id=torch.zeros(2))
    value.backward()
    # the better of the two, of which each is half
    assert value.item() == pytest.approx(18000 + 0.693, rel=1e-6)
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 0.4


@pytest.mark.parametrize("base", ["mse", "ce"])
def test_no_shape_depends_on_the_bags(base):
    z, y = batch(base)
    loss = AggregateLoss("mix", base=base)
    compiled = torch.compile(loss.per_sample, fullgraph=True, backend="eager")
    for bags in (BAGS, torch.arange(8)):
        given = y if bags is BAGS else y.roll(1, 0)
        expected = loss.per_sample(z, given, bag_id=bags)
        torch.testing.assert_close(compiled(z, given, bag_id=bags), expected)


def test_least_squares_of_bags_shrinks_by_instances():
    samples, size = 6000, 4
    x, truth = torch.randn(samples, 3).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    bag = torch.arange(samples) // size
    y = (x @ truth).reshape(-1, size).mean(1)[bag]
    ratio = []
    for level in ("bag", "instance"):
        coefficients = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([coefficients], max_iter=50, line_search_fn="strong_wolfe")

        def closure(coefficients=coefficients, optimizer=optimizer, level=level):
            optimizer.zero_grad()
            value = AggregateLoss(level)((x @ coefficients)[:, None], y, bag_id=bag)
            value.backward()
            return value

        optimizer.step(closure)
        ratio.append(float(coefficients.detach() @ truth / truth.square().sum()))
    assert ratio[0] == pytest.approx(1, abs=0.01)
    assert ratio[1] == pytest.approx(1 / size, abs=0.02)


def test_what_is_refused():
    z, y = batch()
    with pytest.raises(ValueError, match="needs bag_id"):
        AggregateLoss()(z, y)
    torn = y.clone()
    torn[2] += 1
    with pytest.raises(ValueError, match="row 2 of those that count"):
        AggregateLoss()(z, torn, bag_id=BAGS)
    with pytest.raises(ValueError, match="shares of the classes"):
        AggregateLoss(base="ce")(z, y, bag_id=BAGS)
    with pytest.raises(ValueError, match="for a share take two"):
        AggregateLoss(base="ce")(z[:, :1], torch.ones(8, 1), bag_id=BAGS)
    with pytest.raises(ValueError, match="takes a float a logit"):
        AggregateLoss().eval()(z, torch.zeros(8, dtype=torch.long))
    for argument in ({"level": "bags"}, {"base": "bce"}, {"rho": 1.1}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}="):
            AggregateLoss(**argument)
    with pytest.raises(ValueError, match="a bag has no class"):
        AggregateLoss(class_weight=[1.0])
