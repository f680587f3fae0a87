"""Comp-sum losses: the members by name, the limits, and the derivative."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hf_softext.losses import get_loss

GOLDEN = Path(__file__).parents[1] / "golden"
LABELS = torch.tensor([0, 3, 2, 4, 1, 1])


def logits(scale: float = 2.0) -> Tensor:
    return (torch.randn(6, 5, dtype=torch.float64) * scale).requires_grad_()


def values(z: Tensor, **settings) -> Tensor:
    return get_loss("comp_sum", **settings).per_sample(z, LABELS)


def test_gce_of_the_ldr_authors():
    golden = load_file(GOLDEN / "gce_q_0.7.safetensors")
    for loss in (get_loss("gce"), get_loss("comp_sum", tau=1.7)):
        z = golden["logits"].requires_grad_()
        value = loss(z, golden["labels"])
        (gradient,) = torch.autograd.grad(value, z)
        torch.testing.assert_close(value, golden["loss"], rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, golden["grad"], rtol=1e-12, atol=1e-14)


def test_members_of_the_family():
    z = logits()
    p = z.softmax(-1).gather(1, LABELS[:, None])[:, 0]
    others = (z - z.gather(1, LABELS[:, None])).exp().sum(-1) - 1
    torch.testing.assert_close(values(z, tau=0.0), others)
    torch.testing.assert_close(values(z, tau=0.5), 2 * (p.rsqrt() - 1))
    assert torch.equal(values(z, tau=1.0), F.cross_entropy(z, LABELS, reduction="none"))
    torch.testing.assert_close(values(z, tau=2.0), 1 - p)
    torch.testing.assert_close(get_loss("mae").per_sample(z, LABELS), 1 - p)
    torch.testing.assert_close(get_loss("gce", q=0.3).per_sample(z, LABELS), (1 - p**0.3) / 0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", [1e-4, 1e-7, 1e-12, 2**-52])
def test_continuous_at_cross_entropy(step, dtype):
    z = logits().to(dtype)
    cross_entropy = values(z, tau=1.0)
    # the next term of the series
    slope = cross_entropy.square() / 2
    for side in (step, -step):
        torch.testing.assert_close(
            values(z, tau=1 + side),
            cross_entropy - side * slope,
            rtol=20 * max(step**2, torch.finfo(dtype).eps),
            atol=0,
        )


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_the_derivative_is_that_of_cross_entropy_times_a_power(tau):
    z = logits()
    (gradient,) = torch.autograd.grad(values(z, tau=tau).sum(), z)
    p = z.softmax(-1)
    expected = p.gather(1, LABELS[:, None]) ** (tau - 1) * (p - F.one_hot(LABELS, 5))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [None, 3.0])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_the_derivative_in_place(tau, limit):
    loss, z, weight = get_loss("comp_sum", tau=tau, max_exponent=limit), logits(5.0), torch.rand(6)
    weight = weight.double()
    expected = loss.per_sample(z, LABELS)
    (gradient,) = torch.autograd.grad(expected, z, weight)
    found = z.detach().clone()
    torch.testing.assert_close(loss.gradient_(found, LABELS, weight), expected.detach())
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)


def test_max_exponent_keeps_hopeless_rows_finite():
    z = torch.tensor([[0.0, 300.0], [0.0, 10.0], [0.0, 2.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0])
    assert get_loss("comp_sum", tau=0.0).per_sample(z, labels)[0] == float("inf")
    capped = get_loss("comp_sum", tau=0.0, max_exponent=10.0).per_sample(z, labels)
    (gradient,) = torch.autograd.grad(capped.sum(), z)
    # e^10 - 1 at the end of the formula, then a straight line with its slope
    end = torch.tensor(10.0).exp()
    torch.testing.assert_close(capped[0], end - 1 + end * 290)
    torch.testing.assert_close(gradient[0], torch.tensor([-end, end]))
    torch.testing.assert_close(capped[2], torch.tensor(2.0).exp())
    torch.testing.assert_close(gradient[2, 1], torch.tensor(2.0).exp())


def test_more_sure_is_less_loss():
    z = torch.zeros(6, 5).scatter(1, LABELS[:, None], torch.arange(6.0)[:, None])
    for tau in (0.0, 1.0, 1.7, 2.0):
        assert (values(z, tau=tau).diff() < 0).all()


def test_nan_and_infinite_logits():
    z = logits().detach()
    z[1, 0] = float("nan")
    # the label of row 2 is impossible, and of row 3 sure
    z[2, 2], z[3, 4] = -float("inf"), float("inf")
    assert values(z, tau=1.5)[[1, 3]].isnan().all()
    assert values(z, tau=1.5)[2] == 2


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("comp_sum", {"tau": -0.1}, "tau=-0.1"),
        ("comp_sum", {"tau": float("nan")}, "tau=nan"),
        ("comp_sum", {"max_exponent": 0}, "max_exponent=0"),
        ("gce", {"q": 0.0}, "use 'ce'"),
        ("gce", {"q": 1.1}, "q=1.1"),
        ("gce", {"tau": 1.0}, "takes no 'tau'"),
        ("mae", {"tau": 1.0}, "takes no 'tau'"),
    ],
)
def test_errors(name, settings, match):
    with pytest.raises(ValueError, match=match):
        get_loss(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("comp_sum", {"tau": 0.5, "max_exponent": 20.0}), ("gce", {"q": 0.4}), ("mae", {})],
)
def test_config_builds_the_same_loss(name, settings):
    loss = get_loss(name, **settings)
    again = get_loss(**loss.config())
    assert again.config() == loss.config()
    assert again.tau == loss.tau
