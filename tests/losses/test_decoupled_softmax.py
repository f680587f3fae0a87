"""Positives that do not compete: the authors' code, limits, and rows that have one side only."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.losses.decoupled_softmax import DecoupledSoftmaxLoss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "decoupled_softmax_loss.safetensors")


def test_equals_the_authors_code():
    logits = GOLDEN["sim"].clone().requires_grad_()
    # index 9 stands for nothing
    labels = torch.zeros(4, 10, dtype=torch.float64)
    labels = labels.scatter(1, GOLDEN["target_inds"], 1.0)[:, :9]
    value = DecoupledSoftmaxLoss()(logits, labels)
    value.backward()
    torch.testing.assert_close(value, GOLDEN["loss"])
    torch.testing.assert_close(logits.grad, GOLDEN["grad"])


def test_one_positive_is_cross_entropy():
    logits, classes = 3 * torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 6, (8,))
    labels = torch.nn.functional.one_hot(classes, 6).double()
    expected = torch.nn.functional.cross_entropy(logits / 0.3, classes)
    torch.testing.assert_close(DecoupledSoftmaxLoss(temperature=0.3)(logits, labels), expected)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_rows_of_one_side_are_exactly_zero(scale):
    logits = (scale * torch.randn(3, 4)).requires_grad_()
    labels = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]])
    value = DecoupledSoftmaxLoss()(logits, labels)
    # a NaN on the way back is seen here, also where it would be masked later
    with torch.autograd.set_detect_anomaly(True):
        value.backward()
    assert (logits.grad[:2] == 0).all()
    assert logits.grad.isfinite().all()
    assert DecoupledSoftmaxLoss()(logits[:2], labels[:2]) == 0


def test_no_gradient_from_one_positive_to_another():
    labels = torch.tensor([[1.0, 1, 0, 0]])
    logits = torch.randn(1, 4, dtype=torch.float64)
    second = torch.autograd.functional.hessian(
        lambda z: DecoupledSoftmaxLoss()(z, labels.double()), logits
    )[0, :, 0, :]
    assert second[0, 1] == 0
    assert second[0, 0] > 0
    assert second[2, 3] != 0


def test_scores_below_the_mask_of_the_authors():
    # there a positive at -100 outweighs a negative at -200
    logits = torch.tensor([[-190.0, -195.0, -200.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.nn.functional.softplus(torch.tensor([-10.0, -5.0]).double()).mean()
    torch.testing.assert_close(DecoupledSoftmaxLoss()(logits, labels), expected)


def test_a_relevance_weighs_its_term():
    logits, labels = torch.randn(1, 5), torch.tensor([[1.0, 0.25, 0, 0, 0]])
    alone = [
        DecoupledSoftmaxLoss()(logits[:, [j, 2, 3, 4]], torch.tensor([[1.0, 0, 0, 0]]))
        for j in (0, 1)
    ]
    expected = (alone[0] + 0.25 * alone[1]) / 2
    torch.testing.assert_close(DecoupledSoftmaxLoss()(logits, labels), expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses(temperature):
    with pytest.raises(ValueError, match="temperature="):
        DecoupledSoftmaxLoss(temperature=temperature)
