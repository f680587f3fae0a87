"""The losses with a teacher: the authors' values, identities, and far out."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_softext.losses.distillation import DualHeadLoss, KdLoss

GOLDEN = Path(__file__).parents[1] / "golden"
VECTORS = ["norm_1.0", "norm_2.0", "binary_kl_1.0", "binary_kl_2.0", "binary_kl_4.0"]


def batch(rows=6, classes=5, dtype=torch.float64):
    s, t, a = torch.randn(3, rows, classes, dtype=dtype) * 3
    return s.requires_grad_(), t.requires_grad_(), a.requires_grad_(), torch.arange(rows) % classes


@pytest.mark.parametrize("vector", VECTORS)
def test_equals_the_authors_code(vector):
    golden = load_file(GOLDEN / f"dhkd_{vector}.safetensors")
    form = vector.rpartition("_")[0]
    student = golden["student"].clone().requires_grad_()
    labels = torch.zeros(len(student), dtype=torch.long)
    loss = DualHeadLoss(temperature=golden["T"].item(), gamma=0.0, form=form)
    logits = torch.zeros_like(student)
    value = loss(logits, labels, teacher_logits=golden["teacher"], aux_logits=student)
    value.backward()
    # their float32 value is a sum of logarithms of rounded probabilities
    torch.testing.assert_close(value, golden["loss"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(student.grad, golden["grad"], rtol=1e-4, atol=1e-5)


def test_norm_is_the_divergence_from_a_half():
    s, t, a, y = batch()
    found = DualHeadLoss(gamma=0.0, alpha=0.3).eval()(s, y, teacher_logits=t, aux_logits=a)
    q = torch.sigmoid((a - t) / 2)
    divergence = -0.5 * (2 * q).log() - 0.5 * (2 * (1 - q)).log()
    torch.testing.assert_close(found, 0.3 * 4 * divergence.sum(-1).mean())
    found.backward()
    expected = 0.3 * 2 / (2 * len(y)) * torch.tanh((a - t) / 4)
    torch.testing.assert_close(a.grad, expected, rtol=1e-8, atol=1e-10)
    assert t.grad is None


@pytest.mark.parametrize("form", ["norm", "binary_kl"])
def test_each_head_has_its_own_objective(form):
    s, t, a, y = batch()
    DualHeadLoss(gamma=0.7, form=form)(s, y, teacher_logits=t, aux_logits=a).backward()
    (expected,) = torch.autograd.grad(0.7 * F.cross_entropy(s, y), s)
    torch.testing.assert_close(s.grad, expected)
    assert a.grad.abs().min() > 0
    assert t.grad is None


@pytest.mark.parametrize("form", ["norm", "binary_kl"])
def test_nothing_to_learn_from_oneself(form):
    s, t, _, y = batch()
    a = t.detach().clone().requires_grad_()
    value = DualHeadLoss(gamma=0.0, form=form)(s, y, teacher_logits=t, aux_logits=a)
    value.backward()
    assert value.abs() < 1e-14
    assert a.grad.abs().max() < 1e-14


@pytest.mark.parametrize("form", ["norm", "binary_kl"])
def test_a_high_temperature_is_the_squared_difference(form):
    s, t, a, y = batch()
    loss = DualHeadLoss(temperature=1e3, gamma=0.0, form=form)
    found = loss(s, y, teacher_logits=t, aux_logits=a)
    torch.testing.assert_close(found, (a - t).square().sum() / (8 * len(y)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("form", ["norm", "binary_kl"])
def test_far_apart_logits_stay_finite(form):
    a = torch.tensor([[1e4, -1e4, 60.0]], requires_grad=True)
    t, y = torch.tensor([[-1e4, 1e4, -60.0]]), torch.tensor([0])
    value = DualHeadLoss(1.0, gamma=0.0, form=form)(a * 0, y, teacher_logits=t, aux_logits=a)
    value.backward()
    # log cosh(u) -> |u| - log 2, and KL -> |a|
    expected = 20060 - 3 * torch.tensor(2.0).log() if form == "norm" else torch.tensor(20060.0)
    torch.testing.assert_close(value, expected)
    assert a.grad.isfinite().all()


def test_kd_is_cross_entropy_and_a_softened_teacher():
    s, t, _, y = batch()
    found = KdLoss(temperature=3.0, alpha=0.25)(s, y, teacher_logits=t)
    p, q = (s / 3).softmax(-1), (t / 3).softmax(-1)
    divergence = (q * (q / p).log()).sum(-1).mean()
    torch.testing.assert_close(found, 0.75 * F.cross_entropy(s, y) + 0.25 * 9 * divergence)
    found.backward()
    assert t.grad is None
    expected = 0.75 * (s.softmax(-1) - F.one_hot(y, 5)) + 0.25 * 3 * (p - q)
    torch.testing.assert_close(s.grad, expected / len(y))
    # a constant added to the teacher's logits says nothing
    torch.testing.assert_close(
        KdLoss(3.0, 0.25)(s, y, teacher_logits=t + 7), found, rtol=1e-12, atol=1e-12
    )


def test_ignored_rows_take_their_teacher_with_them():
    s, t, a, y = batch()
    y = y.clone()
    y[2] = -100
    kept = y != -100
    t = t.detach().masked_fill(~kept[:, None], float("nan"))
    rest = KdLoss()(s[kept], y[kept], teacher_logits=t[kept])
    torch.testing.assert_close(KdLoss()(s, y, teacher_logits=t), rest)
    found = DualHeadLoss()(s, y, teacher_logits=t, aux_logits=a)
    rest = DualHeadLoss()(s[kept], y[kept], teacher_logits=t[kept], aux_logits=a[kept])
    torch.testing.assert_close(found, rest)


@pytest.mark.parametrize("loss", [KdLoss(alpha=0.9), DualHeadLoss(gamma=3.0)])
def test_evaluation_without_a_teacher_is_cross_entropy(loss):
    s, t, _, y = batch()
    with pytest.raises(ValueError, match="teacher_logits"):
        loss.train()(s, y)
    torch.testing.assert_close(loss.eval()(s, y), F.cross_entropy(s, y))
    with pytest.raises(ValueError, match="a number for each logit"):
        loss(s, y, teacher_logits=t[:, :3], aux_logits=s)


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        (KdLoss, {"temperature": 0.0}),
        (KdLoss, {"alpha": 1.5}),
        (DualHeadLoss, {"temperature": float("nan")}),
        (DualHeadLoss, {"gamma": -1.0}),
        (DualHeadLoss, {"alpha": float("inf")}),
        (DualHeadLoss, {"form": "kl"}),
    ],
)
def test_bad_arguments_are_named(kind, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        kind(**argument)
