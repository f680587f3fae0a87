"""LDR-KL: the authors' values, its limits, and what normalising scores does."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hf_softext.losses import get_loss
from hf_softext.losses.ldr_kl import ldr_kl, normalize_scores

GOLDEN = Path(__file__).parents[1] / "golden"
LABELS = torch.tensor([0, 3, 2, 4, 1, 1])


def scores() -> Tensor:
    return (torch.randn(6, 5, dtype=torch.float64) * 2).requires_grad_()


def differences(f: Tensor, margin: float) -> Tensor:
    return f - f.gather(1, LABELS[:, None]) + margin * (1 - F.one_hot(LABELS, 5).to(f))


def values(f: Tensor, **settings) -> Tensor:
    return get_loss("ldr_kl", **settings).per_sample(f, LABELS)


@pytest.mark.parametrize("file", ["ldr_kl_lam_10", "ldr_kl_lam_0.5"])
def test_the_authors_values_and_gradient(file):
    golden = load_file(GOLDEN / f"{file}.safetensors")
    # kept in float32
    lam, margin = golden["lam"].item(), round(golden["margin"].item(), 6)
    loss = get_loss("ldr_kl", lam=lam, margin=margin, normalize="softplus")
    f = golden["logits"].requires_grad_()
    value = loss(f, golden["labels"])
    (gradient,) = torch.autograd.grad(value, f)
    # their log of the number of classes is float32
    torch.testing.assert_close(value, golden["loss"], rtol=0, atol=1e-8 * max(lam, 1))
    torch.testing.assert_close(gradient, golden["grad"], rtol=0, atol=1e-10)


def test_one_temperature_and_no_margin_is_cross_entropy():
    f = scores()
    expected = F.cross_entropy(f, LABELS, reduction="none") - math.log(5)
    torch.testing.assert_close(values(f, lam=1.0, margin=0.0), expected)


def test_limits_are_the_hinge_and_the_mean():
    f = scores()
    d = differences(f, 0.5)
    torch.testing.assert_close(values(f, lam=1e-6, margin=0.5), d.amax(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(values(f, lam=1e7, margin=0.5), d.mean(-1), rtol=0, atol=1e-5)
    # a loss of more than 1e4 temperatures, where a plain exponential overflows
    assert values(f.float() * 1e4, lam=1e-3, margin=0.5).isfinite().all()


@pytest.mark.parametrize("lam", [0.3, 2.0])
def test_no_weights_over_the_labels_do_better(lam):
    f = scores().detach()
    d, value = differences(f, 1.0), values(f, lam=lam, margin=1.0)

    def objective(p: Tensor) -> Tensor:
        return (p * d).sum(-1) - lam * (p * (5 * p).log()).nan_to_num(0.0).sum(-1)

    best = torch.softmax(d / lam, -1)
    torch.testing.assert_close(objective(best), value)
    for p in (torch.full_like(d, 0.2), F.one_hot(LABELS, 5).double(), torch.rand(6, 5).double()):
        assert (objective(p / p.sum(-1, keepdim=True)) < value).all()
    assert (value > -lam * math.log(5)).all()


def test_the_derivative_is_the_worst_case_less_the_label():
    f = scores()
    (gradient,) = torch.autograd.grad(values(f, lam=0.4, margin=0.7).sum(), f)
    expected = torch.softmax(differences(f, 0.7) / 0.4, -1) - F.one_hot(LABELS, 5)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_a_constant_changes_nothing():
    f = scores()
    torch.testing.assert_close(values(f + 7), values(f))


def test_a_temperature_for_each_row():
    f, lam = scores(), torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0, 10.0], dtype=torch.float64)
    expected = [values(f, lam=x, margin=0.2)[i] for i, x in enumerate(lam.tolist())]
    torch.testing.assert_close(ldr_kl(f, LABELS, lam, 0.2), torch.stack(expected))


@pytest.mark.parametrize("how", ["none", "l1", "softplus"])
def test_normalised_scores(how):
    f = scores()
    found = normalize_scores(f, how)
    positive = {"none": f, "l1": f, "softplus": F.softplus(f)}[how]
    if how == "none":
        assert found is f
    else:
        torch.testing.assert_close(found.abs().mean(-1), torch.ones(6, dtype=torch.float64))
        torch.testing.assert_close(found / found[:, :1], positive / positive[:, :1])
    # a row of zeros, as a head begins with, and one whose softplus is 0 in float32
    flat = torch.tensor([[0.0, 0.0, 0.0], [-200.0, -200.0, -200.0]], requires_grad=True)
    out = normalize_scores(flat, how)
    (gradient,) = torch.autograd.grad(out.sum(), flat)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


def test_only_plain_scores_have_a_derivative_in_place():
    assert get_loss("ldr_kl").in_place
    for how in ("l1", "softplus"):
        loss = get_loss("ldr_kl", normalize=how)
        assert not loss.in_place
        with pytest.raises(ValueError, match=f"normalize='{how}'"):
            loss.gradient_(torch.zeros(6, 5), LABELS, torch.ones(6))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lam": 0}, "lam=0"),
        ({"lam": float("inf")}, "lam=inf"),
        ({"margin": -1}, "margin=-1"),
        ({"normalize": "l2"}, "normalize='l2'"),
    ],
)
def test_errors(settings, match):
    with pytest.raises(ValueError, match=match):
        get_loss("ldr_kl", **settings)
    with pytest.raises(ValueError, match="how='l2'"):
        normalize_scores(torch.zeros(1, 2), "l2")
