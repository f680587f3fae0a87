"""The hook: any optimizer, closures, state, groups, wrappers, shards."""

import copy
import socket

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from hf_softext.functional.perp_grad import project_out
from hf_softext.optim import perp_grad
from tests.processes import leave

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}


def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))


def loss_of(model, step=0):
    data = torch.randn(10, 6, generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(data), torch.arange(10) % 3)


def train(model, optimizer, steps, start=0, scheduler=None):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def same(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_is_that_of_projected_gradients(name):
    hooked, plain, untouched = network(), network(), network()
    optimizer = OPTIMIZERS[name](hooked.parameters())
    perp_grad(optimizer)
    train(hooked, optimizer, 3)
    by_hand = OPTIMIZERS[name](plain.parameters())
    for step in range(3):
        by_hand.zero_grad()
        loss_of(plain, step).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for parameter in plain.parameters():
            parameter.grad = project_out(parameter.grad, parameter.detach())
        by_hand.step()
    assert same(hooked, plain)
    train(untouched, OPTIMIZERS[name](untouched.parameters()), 3)
    assert not same(hooked, untouched)


def test_options_reach_the_projection():
    for options in ({"renorm": False}, {"granularity": "row"}, {"min_residual": 0.9}):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        perp_grad(optimizer, **options)
        loss_of(model).backward()
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for gradient, parameter in zip(before, model.parameters(), strict=True):
            expected = project_out(gradient, parameter.detach(), **options)
            assert torch.equal(parameter.grad, expected)


def test_resume_with_state_dict_and_schedule_is_bit_for_bit():
    def build(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        perp_grad(optimizer)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)

    whole = network()
    train(whole, *build(whole)[:1], 6, scheduler=None)
    scheduled = network()
    optimizer, scheduler = build(scheduled)
    train(scheduled, optimizer, 6, scheduler=scheduler)
    # the schedule takes effect
    assert not same(whole, scheduled)

    first = network()
    optimizer, scheduler = build(first)
    train(first, optimizer, 3, scheduler=scheduler)
    state = copy.deepcopy((first.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    # the state is that of the optimizer alone, moments included
    plain = torch.optim.AdamW(network().parameters(), lr=0.05)
    assert state[1]["param_groups"][0].keys() >= plain.state_dict()["param_groups"][0].keys()
    assert len(state[1]["state"]) == 6
    second = network()
    optimizer, scheduler = build(second)
    second.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    scheduler.load_state_dict(state[2])
    train(second, optimizer, 3, start=3, scheduler=scheduler)
    assert same(second, scheduled)


@pytest.mark.parametrize("keyword", [True, False])
def test_closure_gradients_are_projected(keyword):
    hooked, plain = network(), network()
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.1)
    perp_grad(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(hooked)
        loss.backward()
        return loss

    # left by somebody else: must not matter, the closure clears it
    for parameter in hooked.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    perp_grad(other)
    expected = loss_of(plain)
    expected.backward()
    other.step()
    assert torch.equal(loss, expected)
    assert same(hooked, plain)
    for parameter in hooked.parameters():
        parameter.grad = None


def test_lbfgs_calls_a_projected_closure_each_time():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    perp_grad(optimizer, exclude=lambda p: p.dim() < 2)
    along = []

    def closure():
        along.extend(
            (p.grad * p).sum().abs() / (p.grad.norm() * p.norm())
            for p in model.parameters()
            if p.grad is not None and p.dim() > 1 and called
        )
        called.append(1)
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    called: list[int] = []
    before = loss_of(model)
    optimizer.step(closure)
    assert len(called) > 2
    assert loss_of(model) < before
    # seen at the next call: the gradient of the one before, against weights moved a little
    assert max(along) < 0.5


def test_exclude_later_groups_and_missing_gradients():
    model, late = network(), nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    names = {p: n for n, p in model.named_parameters()}
    perp_grad(optimizer, exclude=lambda p: "bias" in names.get(p, ""))
    optimizer.add_param_group({"params": [late], "lr": 0.1})
    loss_of(model).backward()
    late.grad = late.detach() + 0.1 * torch.randn(4, 4)
    model[0].weight.grad = None
    before = {p: p.grad.clone() for p in [*model.parameters(), late] if p.grad is not None}
    value = late.detach().clone()
    optimizer.step()
    assert model[0].weight.grad is None
    for parameter, gradient in before.items():
        excluded = "bias" in names.get(parameter, "")
        assert torch.equal(parameter.grad, gradient) == excluded
    # the group's own learning rate
    torch.testing.assert_close(late.detach(), value - 0.1 * late.grad)
    assert model[3].bias.grad.abs().max() > 0


def test_twice_on_one_optimizer_is_refused_and_remove_ends_it():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = perp_grad(optimizer)
    with pytest.raises(ValueError, match=r"optimizer=SGD has perp_grad already: remove\(\)"):
        perp_grad(optimizer, granularity="row")
    # another one is another one
    other = torch.optim.SGD(network().parameters(), lr=0.1)
    perp_grad(other)
    handle.remove()
    loss_of(model).backward()
    before = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(model[0].weight.grad, before)
    perp_grad(optimizer)


@pytest.mark.parametrize("hook_first", [True, False])
def test_accelerate_wraps_it_or_is_unwrapped(hook_first):
    # what a Trainer of another test has left in this process
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if hook_first:
        perp_grad(optimizer)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    if not hook_first:
        perp_grad(wrapped)
    with pytest.raises(ValueError, match="already"):
        perp_grad(wrapped)
    for step in range(4):
        with accelerator.accumulate(prepared):
            accelerator.backward(loss_of(prepared, step))
            wrapped.step()
            wrapped.zero_grad()
    plain = network()
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    perp_grad(other)
    for step in (0, 2):
        for micro in (step, step + 1):
            (loss_of(plain, micro) / 2).backward()
        other.step()
        other.zero_grad()
    assert same(model, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_strides(dtype):
    weight = nn.Parameter(torch.randn(6, 4).to(dtype).t())
    zero = nn.Parameter(torch.zeros(5, dtype=dtype))
    optimizer = torch.optim.SGD([weight, zero], lr=0.0)
    perp_grad(optimizer)
    weight.grad = torch.randn(4, 6).to(dtype)
    zero.grad = torch.randn(5).to(dtype)
    gradient, other = weight.grad.clone(), zero.grad.clone()
    optimizer.step()
    assert not weight.is_contiguous()
    assert weight.grad.dtype == dtype
    along = (weight.grad.double() * weight.double()).sum()
    least = torch.finfo(dtype).eps * gradient.double().norm() * weight.double().norm()
    assert along.abs() < least
    assert torch.equal(zero.grad, other)


def flat(parameter):
    parameter._fsdp_flattened = True
    return parameter


def partitioned(parameter):
    parameter.ds_id = 3
    return parameter


@pytest.mark.parametrize(
    ("parameter", "error", "message"),
    [
        (flat(nn.Parameter(torch.randn(7))), ValueError, r"shape \(7,\) is a flat shard"),
        (partitioned(nn.Parameter(torch.randn(7))), ValueError, r"use FSDP version 2"),
        (nn.Parameter(torch.randn(2, dtype=torch.cfloat)), TypeError, "is complex: exclude it"),
    ],
)
def test_what_cannot_be_projected_is_refused(parameter, error, message):
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with pytest.raises(error, match=message):
        perp_grad(optimizer)
    perp_grad(optimizer, exclude=lambda p: True)


def test_sparse_gradients_and_wrong_arguments_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    handle = perp_grad(optimizer)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(5, 3\) is sparse: .*sparse=False, or exclude"):
        optimizer.step()
    handle.remove()
    perp_grad(optimizer, exclude=lambda p: p is table.weight).remove()
    optimizer.step()
    for wrong in ({"granularity": "column"}, {"min_residual": 1.0}, {"eps": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            perp_grad(optimizer, **wrong)
    for no_optimizer in (None, nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="runs no step hooks of torch"):
            perp_grad(no_optimizer)


def test_differentiable_optimizers_are_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.randn(4))], differentiable=True)
    with pytest.raises(ValueError, match="optimizer=SGD has differentiable=True"):
        perp_grad(optimizer)


def test_gradients_that_overlap_themselves_are_replaced():
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 5.0]))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    perp_grad(optimizer)
    weight.grad = torch.ones(1).expand(4)
    optimizer.step()
    assert torch.equal(weight.grad, project_out(torch.ones(4), weight.detach()))


def sharded(rank, port, results):
    """Two processes, each with half of the rows of each weight (FSDP version 2)."""
    torch.set_num_threads(1)
    from torch.distributed import init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    address = f"tcp://127.0.0.1:{port}"
    init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for granularity in ("tensor", "row"):
        model = network()
        for layer in (model[0], model[3], model):
            fully_shard(layer, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
        assert all(isinstance(p, DTensor) for p in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        perp_grad(optimizer, granularity=granularity)
        train(model, optimizer, 3)
        whole = [p.full_tensor().detach() for p in model.parameters()]
        if rank == 0:
            results[granularity] = [p.tolist() for p in whole]
    leave()


@pytest.mark.slow
def test_sharded_parameters_equal_whole_ones():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(sharded, args=(port, results), nprocs=2)
        found = dict(results)
    for granularity in ("tensor", "row"):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        perp_grad(optimizer, granularity=granularity)
        train(model, optimizer, 3)
        for parameter, values in zip(model.parameters(), found[granularity], strict=True):
            torch.testing.assert_close(
                torch.tensor(values), parameter.detach(), rtol=1e-5, atol=1e-6
            )
