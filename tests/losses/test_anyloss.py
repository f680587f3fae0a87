"""Metrics as losses: the authors' code, scikit-learn's metrics, batches of one class."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, fbeta_score

from hf_softext.losses.anyloss import METRICS, AnyLoss

GOLDEN = Path(__file__).parents[1] / "golden"
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.mark.parametrize("metric", ["f_beta", "accuracy"])
def test_equals_the_authors_code(metric):
    data = load_file(GOLDEN / f"anyloss_{metric}.safetensors")
    assert data["L"] == AnyLoss().amplify
    p = data["p"].clone().requires_grad_()
    value = AnyLoss(metric)(p.logit()[:, None], data["labels"])
    value.backward()
    torch.testing.assert_close(value, data["loss"])
    torch.testing.assert_close(p.grad, data["grad_p"])


def formula(metric, a, y):
    """As the paper writes them."""
    n, positive, total, hits = len(y), y.sum(), a.sum(), (a * y).sum()
    negative = n - positive
    rejected = n - positive - total + hits
    if metric == "g_mean":
        return 1 - (hits * rejected / (positive * negative)).sqrt()
    top = n * (hits + positive) - positive * (total + positive)
    return 1 - top / (2 * positive * negative)


@pytest.mark.parametrize("metric", ["g_mean", "balanced_accuracy"])
def test_equals_the_formula(metric):
    y = torch.tensor([1.0, 0, 0, 1, 0, 1, 0], dtype=torch.float64)
    z = torch.randn(7, dtype=torch.float64)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    value = AnyLoss(metric, amplify=9.0)(ours[:, None], y)
    expected = formula(metric, (9 * (theirs.sigmoid() - 0.5)).sigmoid(), y)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@every_metric
def test_of_sure_scores_is_the_metric(metric):
    logits = 30 * torch.sign(torch.randn(50, 1))
    labels = (torch.rand(50) < 0.4).long()
    guess, truth = (logits[:, 0] > 0).long().numpy(), labels.numpy()
    beta = 2.0
    if metric == "g_mean":
        rates = [accuracy_score(truth[truth == c], guess[truth == c]) for c in (0, 1)]
        expected = (rates[0] * rates[1]) ** 0.5
    else:
        expected = {
            "f_beta": lambda: fbeta_score(truth, guess, beta=beta),
            "accuracy": lambda: accuracy_score(truth, guess),
            "balanced_accuracy": lambda: balanced_accuracy_score(truth, guess),
        }[metric]()
    assert AnyLoss(metric, beta=beta)(logits, labels) == pytest.approx(1 - expected, abs=1e-6)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_averages_over_labels_are_those_of_scikit_learn(average):
    logits = 30 * torch.sign(torch.randn(40, 3))
    labels = (torch.rand(40, 3) < torch.tensor([0.2, 0.5, 0.8])).float()
    expected = f1_score(labels.numpy(), (logits > 0).numpy(), average=average)
    assert AnyLoss(average=average)(logits, labels) == pytest.approx(1 - expected, abs=1e-6)


@every_metric
def test_derivative(metric):
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    loss = AnyLoss(metric, beta=0.7, amplify=5.0)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), z)
    # a higher score of a positive is never worse, nor of a negative better
    (grad,) = torch.autograd.grad(loss(z, y), z)
    assert ((2 * y - 1) * grad <= 0).all()


@every_metric
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("amplify", [73.0, 1e4])
def test_one_class_alone_is_finite(metric, label, scale, amplify):
    logits = (scale * torch.randn(5, 1)).requires_grad_()
    value = AnyLoss(metric, beta=3.0, amplify=amplify)(logits, torch.full((5,), label))
    value.backward()
    assert 0 <= value <= 1
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("metric", ["g_mean", "balanced_accuracy"])
def test_an_absent_class_has_no_rate(metric):
    logits = torch.tensor([[30.0], [30], [-30], [-30]])
    assert AnyLoss(metric)(logits, torch.ones(4).long()) == pytest.approx(0.5)
    logits = torch.tensor([[0.1], [-0.2]], requires_grad=True)
    AnyLoss(metric)(logits, torch.zeros(2).long()).backward()
    assert (logits.grad > 0).all()


@every_metric
def test_wrong_everywhere_is_finite(metric):
    logits = torch.tensor([[-100.0], [100.0]], requires_grad=True)
    value = AnyLoss(metric, amplify=1e4)(logits, torch.tensor([1, 0]))
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert logits.grad.isfinite().all()


def test_two_logits_are_their_difference():
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, -100, 1])
    difference = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(AnyLoss()(logits, labels), AnyLoss()(difference, labels))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"metric": "f1"}, "metric='f1'"),
        ({"average": "weighted"}, "average='weighted'"),
        ({"beta": 0.0}, r"beta=0\.0"),
        ({"amplify": float("inf")}, "amplify=inf"),
        ({"class_weight": [1.0, 2.0]}, "class_weight"),
    ],
)
def test_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        AnyLoss(**arguments)


def test_refuses_to_be_divided():
    with pytest.raises(ValueError, match="num_items=8"):
        AnyLoss()(torch.randn(2, 1), torch.tensor([0, 1]), num_items=8)
