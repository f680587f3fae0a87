"""Cross-entropy of StableMax: the authors' values, and what it is for."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_softext.functional import log_stablemax
from hf_softext.losses import get_loss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "stablemax.safetensors")
INF, NAN = float("inf"), float("nan")


def in_place(logits, labels, weight):
    derivative = logits.detach().clone()
    losses = get_loss("stablemax_ce").gradient_(derivative, labels, weight)
    return losses, derivative


def test_the_authors_values_and_gradient():
    loss, labels = get_loss("stablemax_ce"), GOLDEN["labels"]
    z = GOLDEN["logits"].requires_grad_()
    value = loss(z, labels)
    (gradient,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(value.double(), GOLDEN["loss_mean"], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, GOLDEN["grad_logits"], rtol=1e-5, atol=1e-8)
    exact = loss.per_sample(z.detach().double(), labels)
    torch.testing.assert_close(exact, GOLDEN["loss_none"][:, 0], rtol=1e-14, atol=0)
    losses, derivative = in_place(z, labels, torch.full((6,), 1 / 6))
    torch.testing.assert_close(losses.double(), exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(derivative, GOLDEN["grad_logits"], rtol=1e-5, atol=1e-8)


def test_a_sure_row_still_teaches_where_cross_entropy_does_not():
    z, label = GOLDEN["collapse_logits"].requires_grad_(), torch.tensor([0])
    (softmax,) = torch.autograd.grad(F.cross_entropy(z, label), z)
    (stable,) = torch.autograd.grad(get_loss("stablemax_ce")(z, label), z)
    assert (softmax == 0).all()
    torch.testing.assert_close(stable, GOLDEN["collapse_grad_sm"])
    torch.testing.assert_close(in_place(z, label, torch.ones(1))[1], stable.detach())


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e30])
def test_the_derivative_in_place_at_any_size(size):
    z = (torch.tensor([[1.0, -1.0, 0.5, -0.2], [-1.0, 0.0, 0.3, -0.7]]) * size).requires_grad_()
    labels, weight = torch.tensor([1, 2]), torch.tensor([0.5, 2.0])
    losses = get_loss("stablemax_ce").per_sample(z, labels)
    (gradient,) = torch.autograd.grad(losses, z, weight)
    found, derivative = in_place(z, labels, weight)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(found, losses.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(derivative, gradient, rtol=1e-5, atol=1e-7)


def test_an_impossible_class_has_no_share_and_no_gradient():
    z = torch.tensor([[0.3, -INF, 1.0]], requires_grad=True)
    value = get_loss("stablemax_ce")(z, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value, z)
    assert log_stablemax(z.detach())[0, 1] == -INF
    two = torch.tensor([[0.3, 1.0]], requires_grad=True)
    expected = get_loss("stablemax_ce")(two, torch.tensor([0]))
    torch.testing.assert_close(value, expected)
    (of_two,) = torch.autograd.grad(expected, two)
    torch.testing.assert_close(gradient, torch.tensor([[of_two[0, 0], 0.0, of_two[0, 1]]]))
    torch.testing.assert_close(in_place(z, torch.tensor([0]), torch.ones(1))[1], gradient)


def test_nan_shows_and_one_class_is_no_loss():
    z = torch.tensor([[NAN, 1.0], [0.0, 1.0]])
    losses = get_loss("stablemax_ce").per_sample(z, torch.tensor([1, 1]))
    assert losses.isnan().tolist() == [True, False]
    assert in_place(z, torch.tensor([1, 1]), torch.ones(2))[0].isnan().tolist() == [True, False]
    losses, derivative = in_place(torch.tensor([[3.0]]), torch.tensor([0]), torch.ones(1))
    assert losses.item() == pytest.approx(0, abs=1e-6)
    assert derivative.item() == pytest.approx(0, abs=1e-6)
