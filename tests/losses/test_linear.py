"""The loss of a linear layer's outputs, without them."""

import pytest
import torch
import torch.nn.functional as F

from hf_softext.losses import get_loss
from hf_softext.losses.linear import can_fuse, loss_of_linear

ROWS, WIDTH, CLASSES = 13, 6, 11


def parts(dtype=torch.float64):
    hidden = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(CLASSES, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(CLASSES, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, CLASSES, (ROWS,))
    labels[[2, 7]] = -100
    return hidden, weight, bias, labels


@pytest.mark.parametrize("name", ["ce", "gce", "stablemax_ce", "spherical_z", "ldr_kl", "l2_svm"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_loss_of_the_logits(name, softcap, weighted):
    # the classes' weights are float32's, so that all is
    hidden, weight, bias, labels = parts(torch.float32)
    given = {"class_weight": torch.rand(CLASSES).tolist()} if weighted else {}
    loss = get_loss(name, **given)
    sample_weight = torch.rand(ROWS) if weighted else None
    logits = F.linear(hidden, weight, bias) * 0.7
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = loss(logits, labels, sample_weight=sample_weight, num_items=20)
    found = loss_of_linear(
        loss,
        hidden,
        weight,
        labels,
        bias=bias,
        scale=0.7,
        softcap=softcap,
        num_items=20,
        sample_weight=sample_weight,
    )
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    for one, other in zip(torch.autograd.grad(found, (hidden, weight, bias)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_by_itself_it_is_the_mean_of_what_counts():
    hidden, weight, bias, labels = parts()
    loss = get_loss("ce")
    found = loss_of_linear(loss, hidden, weight, labels, bias=bias)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), labels)
    torch.testing.assert_close(found.double(), expected)
    nothing = loss_of_linear(loss, hidden, weight, torch.full_like(labels, -100), bias=bias)
    assert nothing == 0
    assert (torch.autograd.grad(nothing, hidden)[0] == 0).all()
    # as a training loop has it, of an optimizer step without a label
    counted = loss_of_linear(loss, hidden, weight, torch.full_like(labels, -100), num_items=0)
    assert counted == 0
    assert (torch.autograd.grad(counted, hidden)[0] == 0).all()
    with pytest.raises(ValueError, match="has 2 numbers, and there are 11 classes"):
        loss_of_linear(get_loss("ce", class_weight=[1.0, 2.0]), hidden, weight, labels)


@pytest.mark.parametrize("name", ["aldr_kl", "anyloss", "soft_topk", "normalized_softmax"])
def test_what_cannot_be_fused_is_refused(name):
    hidden, weight, _, labels = parts()
    assert not can_fuse(get_loss(name))
    with pytest.raises(ValueError, match="not a sum over rows"):
        loss_of_linear(get_loss(name), hidden, weight, labels)


def test_labels_that_do_not_fit():
    hidden, weight, _, labels = parts()
    with pytest.raises(ValueError, match=r"labels from .* do not fit 11 classes"):
        loss_of_linear(get_loss("ce"), hidden, weight, labels + 11)
    with pytest.raises(ValueError, match="do not fit hidden states"):
        loss_of_linear(get_loss("ce"), hidden, weight, labels[:5])
