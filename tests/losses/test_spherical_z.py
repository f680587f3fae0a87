"""The Z-loss: the example's values, its invariances, and its head without logits."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hf_softext.losses import get_loss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "spherical_z_example.safetensors")
LABELS = torch.tensor([0, 3, 2, 6, 1, 1])


def logits() -> Tensor:
    return torch.randn(6, 7, dtype=torch.float64, requires_grad=True)


def gradient(z: Tensor, labels: Tensor = LABELS, **settings) -> Tensor:
    value = get_loss("spherical_z", **settings).per_sample(z, labels).sum()
    return torch.autograd.grad(value, z)[0]


def in_place(z: Tensor, labels: Tensor = LABELS, **settings) -> Tensor:
    derivative = z.detach().clone()
    get_loss("spherical_z", **settings).gradient_(derivative, labels, torch.ones_like(z[:, 0]))
    return derivative


def test_the_authors_example():
    # summed over the batch, and 1e-12 added to sigma instead of its square
    loss = get_loss("spherical_z", a=1.0, b=0.0)
    z, labels = GOLDEN["logits"].requires_grad_(), GOLDEN["labels"]
    values = loss(z, labels, num_items=1), loss.per_sample(z, labels)
    torch.testing.assert_close(values[1], GOLDEN["per_example"], rtol=1e-10, atol=0)
    (found,) = torch.autograd.grad(values[0], z)
    torch.testing.assert_close(found, GOLDEN["grad"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("derivative", [gradient, in_place])
def test_neither_a_constant_nor_a_factor_matters(derivative):
    z = logits()
    loss = get_loss("spherical_z", a=0.7, b=1.5)
    torch.testing.assert_close(
        loss.per_sample(z * 3 + 5, LABELS), loss.per_sample(z, LABELS), rtol=1e-10, atol=0
    )
    found = derivative(z, a=0.7, b=1.5)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(found.sum(-1), zero, rtol=0, atol=1e-14)
    torch.testing.assert_close((found * z).sum(-1).detach(), zero, rtol=0, atol=1e-10)
    assert found.abs().amax(-1).min() > 1e-3


def test_a_large_common_part_does_not_drown_the_rest():
    z = torch.randn(4, 50)
    shifted = z + 2.0**12
    # what float32 holds of it
    exact = get_loss("spherical_z").per_sample((shifted - 2.0**12).double(), LABELS[:4])
    found = get_loss("spherical_z").per_sample(shifted, LABELS[:4])
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)


def test_the_best_and_the_worst_are_the_square_root_of_the_classes():
    one_hot = F.one_hot(LABELS, 7).double()
    for a, b in ((1.0, 2.0), (0.3, 0.0), (4.0, -1.0)):
        loss = get_loss("spherical_z", a=a, b=b)
        for sign in (1, -1):
            expected = math.log1p(math.exp(a * (b - sign * math.sqrt(6)))) / a
            found = loss.per_sample(sign * one_hot, LABELS)
            torch.testing.assert_close(found, torch.full_like(found, expected))


@pytest.mark.parametrize("derivative", [gradient, in_place])
def test_equal_logits_are_finite(derivative):
    z = torch.full((6, 7), 3.0, requires_grad=True)
    values = get_loss("spherical_z").per_sample(z, LABELS)
    torch.testing.assert_close(values, torch.full((6,), math.log1p(math.exp(2.0))))
    assert derivative(z).isfinite().all()


def test_two_classes_are_refused():
    loss = get_loss("spherical_z")
    with pytest.raises(ValueError, match="no gradient for 2 classes"):
        loss(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="2 classes"):
        loss.gradient_(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), torch.ones(4))
    with pytest.raises(ValueError, match="2 classes"):
        loss.linear(torch.randn(4, 5), torch.randn(2, 5), torch.zeros(4).long(), torch.ones(4))
    # as two standardised logits are 1 and -1 whatever they were
    z = torch.tensor([[0.3, 1.0, 1.0]], requires_grad=True)
    assert gradient(z, torch.tensor([0])).abs().max() < 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_head_needs_no_logits(bias):
    loss = get_loss("spherical_z", a=0.5, b=1.0)
    hidden = torch.randn(9, 5, dtype=torch.float64)
    weight = torch.randn(11, 5, dtype=torch.float64)
    offset = torch.randn(11, dtype=torch.float64) if bias else None
    inputs = [x.requires_grad_() for x in (hidden, weight, offset) if x is not None]
    labels, counts = torch.randint(11, (9,)), torch.rand(9).double()
    counts[3] = 0
    expected = (loss.per_sample(F.linear(hidden, weight, offset), labels) * counts).sum()
    ignored = labels.masked_fill(counts == 0, -100)
    found = loss.linear(hidden, weight, ignored, counts, offset)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_linear_head_of_no_row():
    hidden, weight = torch.randn(3, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    value = get_loss("spherical_z").linear(hidden, weight, torch.full((3,), -100), torch.zeros(3))
    value.backward()
    assert value == 0
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"a": 0}, "a=0"), ({"b": float("nan")}, "b=nan"), ({"eps": -1e-12}, "eps=-1e-12")],
)
def test_errors(settings, match):
    with pytest.raises(ValueError, match=match):
        get_loss("spherical_z", **settings)
