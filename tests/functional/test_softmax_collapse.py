"""Counting collapsed rows."""

import sys

import pytest
import torch
import torch.nn.functional as F

from hf_softext.functional.softmax_collapse import softmax_collapse


def counts(logits, labels, **kwargs):
    return [count.item() for count in softmax_collapse(logits, labels, **kwargs)]


def test_counts_what_a_loop_counts_in_chunks_too(monkeypatch):
    logits = 12 * torch.randn(7, 9, 11)
    labels = torch.where(torch.rand(7, 9) < 0.7, logits.argmax(dim=-1), torch.randint(11, (7, 9)))
    labels[torch.rand(7, 9) < 0.3] = -100
    rows, saturated, zero = 0, 0, 0
    for z, y in zip(logits.reshape(-1, 11), labels.reshape(-1), strict=True):
        if y != -100:
            rows += 1
            saturated += (z - z.max()).exp().sum().item() == 1
            zero += F.cross_entropy(z, y).item() == 0
    assert 0 < zero < saturated < rows < 63
    assert counts(logits, labels) == [rows, saturated, zero]
    monkeypatch.setattr(sys.modules[softmax_collapse.__module__], "_CHUNK", 30)
    assert counts(logits, labels) == [rows, saturated, zero]
    assert counts(logits.transpose(0, 1), labels.transpose(0, 1)) == [rows, saturated, zero]


def test_zero_loss_is_zero_gradient():
    logits = (9 * torch.randn(300, 5)).requires_grad_()
    labels = logits.argmax(dim=-1)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    dead = (logits.grad[torch.arange(300), labels] == 0).sum().item()
    assert 0 < dead < 300
    assert counts(logits, labels)[2] == dead


@pytest.mark.parametrize(
    ("dtype", "gap", "expected"),
    [
        # the denominator is 1 + exp(-gap)
        (torch.float64, 36.0, [1, 0, 0]),
        (torch.float64, 37.5, [1, 1, 1]),
        (torch.float32, 15.0, [1, 0, 0]),
        (torch.float32, 17.5, [1, 1, 1]),
        (torch.bfloat16, 4.0, [1, 0, 0]),
        (torch.bfloat16, 7.0, [1, 1, 1]),
        (torch.bfloat16, 20.0, [1, 1, 1]),
        (torch.float16, 9.0, [1, 1, 1]),
        (torch.float16, 20.0, [1, 1, 1]),
    ],
)
def test_precision_is_that_of_the_logits(dtype, gap, expected):
    logits = torch.tensor([[gap, 0.0]], dtype=dtype)
    assert counts(logits, torch.tensor([0])) == expected
    wide = logits.double()
    assert counts(wide, torch.tensor([0]), dtype=dtype) == expected
    # a wrong row that is saturated has a loss, and a gradient
    assert counts(logits, torch.tensor([1]))[2] == 0


def test_edges():
    nan, inf = float("nan"), float("inf")
    assert counts(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) == [0, 0, 0]
    assert counts(torch.randn(3, 4), torch.full((3,), -100)) == [0, 0, 0]
    assert counts(torch.randn(3, 4), torch.full((3,), 7), ignore_index=7) == [0, 0, 0]
    assert counts(torch.randn(3, 1), torch.zeros(3, dtype=torch.long)) == [3, 3, 3]
    assert counts(torch.tensor([[nan, 0.0], [50.0, 0.0]]), torch.tensor([0, 0])) == [2, 1, 1]
    assert counts(torch.tensor([[0.0, -inf], [inf, 0.0]]), torch.tensor([0, 0])) == [2, 1, 1]
    assert counts(torch.tensor([90.0, 0.0]), torch.tensor(0)) == [1, 1, 1]
    assert counts(torch.tensor([[90.0, 0.0]]), torch.tensor([0], dtype=torch.int32)) == [1, 1, 1]
    assert not softmax_collapse(torch.randn(2, 3, requires_grad=True), torch.zeros(2).long())[
        1
    ].requires_grad


def test_what_is_no_classification_is_refused():
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) do not fit logits"):
        softmax_collapse(torch.randn(3, 4), torch.zeros(2).long())
    with pytest.raises(TypeError, match=r"labels are torch.float32"):
        softmax_collapse(torch.randn(3, 4), torch.zeros(3))
