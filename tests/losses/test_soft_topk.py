"""Soft top-k: the authors' code, what a row sums to, derivatives, and the loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.functional.soft_topk import soft_topk
from hf_softext.losses.soft_topk import SoftTopkLoss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "soft_topk.safetensors")
# softtopk_k3_a2.0.out and so on
NAMES = sorted({name.rsplit(".", 1)[0] for name in GOLDEN})


def vectors(name):
    kind, k, alpha = name.split("_")
    tensors = (GOLDEN[f"{name}.{part}"] for part in ("x", "w", "out", "grad"))
    return kind == "softlog", int(k[1:]), float(alpha[1:]), *tensors


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_authors_code(name):
    log, k, alpha, x, weight, out, grad = vectors(name)
    x = x.clone().requires_grad_()
    got = soft_topk(x, k, alpha, log=log)
    (got * weight).sum().backward()
    # theirs ends after 32 halvings
    torch.testing.assert_close(got, out, atol=1e-8, rtol=0)
    torch.testing.assert_close(x.grad, grad, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_rows_sum_to_k(dtype, error, classes):
    for alpha in (0.01, 2.0, 1e4):
        for scale in (0.0, 1e-3, 1.0, 1e3):
            for k in {1, classes // 2, classes - 1}:
                x = scale * torch.randn(3, classes, dtype=dtype)
                total = soft_topk(x, k, alpha).double().sum(-1)
                assert (total / k - 1).abs().max() < error * max(classes / k, 8)


def test_a_long_row_of_nearly_equal_scores():
    # outside of the authors' bracket
    x = 1e-4 * torch.randn(1, 300_000, dtype=torch.float64)
    assert x.shape[-1] * torch.tensor(-10.0).sigmoid() > 5
    assert abs(soft_topk(x, 5).sum() - 5) < 1e-10


def test_invariances():
    x = torch.randn(4, 9, dtype=torch.float64)
    order = torch.randperm(9)
    base = soft_topk(x, 3)
    torch.testing.assert_close(soft_topk(x[:, order], 3), base[:, order])
    torch.testing.assert_close(soft_topk(x + 17, 3), base)
    hard = torch.zeros_like(x).scatter(1, x.topk(3).indices, 1.0)
    torch.testing.assert_close(soft_topk(x, 3, 1e6), hard)
    torch.testing.assert_close(soft_topk(x, 3, log=True).exp(), base)
    each = torch.tensor([1, 3, 5, 8])
    rows = [soft_topk(row, int(k)) for row, k in zip(x, each, strict=True)]
    torch.testing.assert_close(soft_topk(x, each), torch.stack(rows))


@pytest.mark.parametrize("log", [False, True])
def test_derivatives(log):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([1, 3, 5])
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, k, log=log), x)
    grad = torch.autograd.grad((soft_topk(x, k, log=log) * torch.randn(3, 6)).sum(), x)[0]
    torch.testing.assert_close(grad.sum(-1), torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_derivatives_are_finite_where_the_choice_is_hard():
    x = (1e4 * torch.randn(2, 8)).requires_grad_()
    soft_topk(x, 3, log=True).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


def test_excluded_entries_and_nan():
    x = torch.tensor([[1.0, 2.0, float("-inf"), 0.5], [1.0, 2.0, 3.0, float("nan")]])
    out = soft_topk(x, 2)
    torch.testing.assert_close(out[0, [0, 1, 3]], soft_topk(x[0, [0, 1, 3]], 2))
    assert out[0, 2] == 0
    assert out[1].isnan().all()


def test_loss_is_minus_the_mean_log_membership_of_the_positives():
    log, k, alpha, x, _, out, _ = vectors("softlog_k3_a2.0")
    assert log
    labels = (torch.rand(x.shape) < 0.4).double()
    labels[0], labels[1, 0] = 0.0, 1.0
    n = labels.sum(-1).clamp(min=1)
    expected = -((labels * out).sum(-1) / n).mean()
    got = SoftTopkLoss(k, alpha)(x, labels)
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)


def test_loss_of_k_positives_vanishes_and_of_more_does_not():
    labels = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0]]).double()
    scores = 30 * labels
    assert SoftTopkLoss(3)(scores, labels) < 1e-12
    expected = torch.tensor(3 / 2).double().log()
    torch.testing.assert_close(SoftTopkLoss(2)(scores, labels), expected)


def test_loss_of_a_row_without_a_positive_is_zero():
    logits = torch.randn(2, 7, requires_grad=True)
    value = SoftTopkLoss()(logits, torch.zeros(2, 7))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("k", "alpha", "named"),
    [(4, 2.0, "k=4"), (0, 2.0, "k=0"), (2, 0.0, "alpha=0.0"), (2, float("inf"), "alpha=inf")],
)
def test_refuses(k, alpha, named):
    with pytest.raises(ValueError, match=named):
        soft_topk(torch.randn(2, 4), k, alpha)
    if named != "k=4":
        with pytest.raises(ValueError, match=named):
            SoftTopkLoss(k, alpha)
    else:
        with pytest.raises(ValueError, match="k=4: k must be from 1 to 3"):
            SoftTopkLoss(k)(torch.randn(2, 4), torch.zeros(2, 4))


def test_k_of_each_row_is_checked():
    with pytest.raises(ValueError, match="k from 1 to 4"):
        soft_topk(torch.randn(2, 4), torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="k of shape"):
        soft_topk(torch.randn(2, 4), torch.tensor([1, 1, 1]))
    with pytest.raises(TypeError, match="must be an integer"):
        soft_topk(torch.randn(2, 4), torch.tensor([1.0, 2.0]))
