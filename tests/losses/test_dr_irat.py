"""Worst-case weights: limits, extremes, the average over steps, and several processes."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from hf_softext.losses.comp_sum import CompSumLoss
from hf_softext.losses.dr_irat import DrIratLoss
from tests.processes import leave


def batch(rows=7, classes=4):
    z = torch.randn(rows, classes, dtype=torch.float64).mul(3)
    return z, (z + torch.randn(rows, classes)).requires_grad_(), torch.arange(rows) % classes


@pytest.mark.parametrize("ema", [None, 1.0])
@pytest.mark.parametrize("r", [0.3, 1.0, 5.0])
def test_equals_the_closed_form_and_its_gradient(r, ema):
    z, moved, y = batch()
    found = DrIratLoss(r=r, ema=ema)(z, y, perturbed_logits=moved)
    losses = F.cross_entropy(moved, y, reduction="none")
    expected = r * (losses / r).exp().mean().log()
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, moved)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs)
    # it is the maximum over the weights
    w = (losses.detach() / r).softmax(0)
    dual = (w * losses).sum() - r * (w * (len(y) * w).log()).sum()
    torch.testing.assert_close(found, dual)
    other = (w + 0.1) / (w + 0.1).sum()
    assert (other * losses).sum() - r * (other * (len(y) * other).log()).sum() < found


def test_mean_and_largest_are_the_ends():
    z, moved, y = batch()
    losses = F.cross_entropy(moved, y, reduction="none")
    for r, expected in ((1e7, losses.mean()), (1e-4, losses.max())):
        found = DrIratLoss(r=r)(z, y, perturbed_logits=moved)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_equal_and_single_losses():
    z, moved, y = batch()
    same = moved[:1].expand(5, -1)
    found = DrIratLoss(r=0.1)(z[:5], y[:1].expand(5), perturbed_logits=same)
    torch.testing.assert_close(found, F.cross_entropy(moved[:1], y[:1]))
    one = DrIratLoss(ema=0.1)(z[:1], y[:1], perturbed_logits=moved[:1])
    torch.testing.assert_close(one, F.cross_entropy(moved[:1], y[:1]))


@pytest.mark.parametrize("ema", [None, 0.1])
def test_huge_losses_are_finite(ema):
    moved = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], requires_grad=True)
    y, loss = torch.tensor([1, 1, 1]), DrIratLoss(ema=ema, r=0.5)
    for sign in (-1, 1):
        moved.grad = None
        value = loss(moved * 0, y, perturbed_logits=sign * moved)
        value.backward()
        assert value.item() == pytest.approx(20000 - 0.5 * math.log(3), abs=2)
        assert moved.grad.isfinite().all()
        assert moved.grad.abs().max() == pytest.approx(1, abs=0.01)


def test_the_average_over_steps():
    loss = DrIratLoss(r=0.7, ema=0.25)
    u = None
    for _ in range(3):
        z, moved, y = batch()
        found = loss(z, y, perturbed_logits=moved)
        weight = (F.cross_entropy(moved, y, reduction="none") / 0.7).exp().detach()
        u = weight.mean() if u is None else 0.75 * u + 0.25 * weight.mean()
        losses = F.cross_entropy(moved, y, reduction="none")
        (expected,) = torch.autograd.grad((weight / u * losses).mean(), moved)
        (gradient,) = torch.autograd.grad(found, moved)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found, 0.7 * u.log(), rtol=1e-6, atol=1e-6)
    again = DrIratLoss(r=0.7, ema=0.25)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    z, moved, y = batch()
    first, second = (one(z, y, perturbed_logits=moved) for one in (loss, again))
    assert torch.equal(first, second)
    assert torch.equal(loss.log_u, again.log_u)


def test_what_is_not_finite_leaves_no_trace():
    loss = DrIratLoss(ema=0.5)
    z, moved, y = batch()
    loss(z, y, perturbed_logits=moved)
    before = loss.log_u.clone()
    assert loss(z, y, perturbed_logits=moved * float("nan")).isnan()
    assert torch.equal(loss.log_u, before)


def test_evaluation_keeps_the_state():
    loss = DrIratLoss(ema=0.5)
    z, moved, y = batch()
    loss(z, y, perturbed_logits=moved)
    before = copy.deepcopy(loss.state_dict())
    loss.eval()
    torch.testing.assert_close(loss(z, y), F.cross_entropy(z, y))
    plain = DrIratLoss()(z, y, perturbed_logits=moved)
    torch.testing.assert_close(loss(z, y, perturbed_logits=moved), plain)
    assert torch.equal(loss.state_dict()["log_u"], before["log_u"])
    assert DrIratLoss().state_dict() == {}


def test_another_loss_of_the_rows():
    z, moved, y = batch()
    loss = DrIratLoss(base={"name": "comp_sum", "tau": 1.5})
    losses = CompSumLoss(1.5).per_sample(moved, y)
    torch.testing.assert_close(
        loss(z, y, perturbed_logits=moved), losses.exp().mean().log(), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(loss.eval()(z, y), CompSumLoss(1.5)(z, y))
    torch.testing.assert_close(loss.attack_objective(z, y, moved), losses.sum())
    assert loss.config()["base"] == {"name": "comp_sum", "tau": 1.5}
    y[2] = -100
    (gradient,) = torch.autograd.grad(loss.attack_objective(z, y, moved), moved)
    assert torch.equal(gradient[2], torch.zeros(4, dtype=torch.float64))


def one_of_two(rank, folder, moved, y, ema):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = slice(0, 3) if rank == 0 else slice(3, None)
    loss, x = DrIratLoss(r=0.7, ema=ema), moved[own].clone().requires_grad_()
    for _ in range(2):
        x.grad = None
        value = loss(x.detach(), y[own], perturbed_logits=x)
        value.backward()
    torch.save((value.detach(), x.grad, loss.state_dict()), f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize("second_counts", [True, False])
def test_two_processes_weigh_as_one(second_counts, tmp_path):
    _, moved, y = batch()
    moved = moved.detach()
    if not second_counts:
        # it must still meet the first, which would wait for ever
        y[3:] = -100
    mp.spawn(one_of_two, (str(tmp_path), moved, y, 0.3), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    loss, x = DrIratLoss(r=0.7, ema=0.3), moved.clone().requires_grad_()
    for _ in range(2):
        x.grad = None
        value = loss(x.detach(), y, perturbed_logits=x)
        value.backward()
    for found in (first, second):
        if second_counts or found is first:
            torch.testing.assert_close(found[0], value.detach())
        torch.testing.assert_close(found[2], loss.state_dict())
    # gradients are averaged over processes
    torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, x.grad)


def test_what_is_refused():
    z, moved, y = batch()
    with pytest.raises(ValueError, match="needs perturbed_logits"):
        DrIratLoss()(z, y)
    for base in ("kd", "assistive_kd", "aldr_kl", "dr_irat"):
        with pytest.raises(ValueError, match="must be a sum over rows for multiclass"):
            DrIratLoss(base=base)
    for argument in ({"r": 0.0}, {"ema": 0.0}, {"ema": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}="):
            DrIratLoss(**argument)
    with pytest.raises(ValueError, match="num_items"):
        DrIratLoss()(z, y, perturbed_logits=moved, num_items=3)
    with pytest.raises(ValueError, match="no row has a weight"):
        DrIratLoss(class_weight=[1.0] * 4)
