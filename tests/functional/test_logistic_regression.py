"""Logistic regression is at its optimum, and at scikit-learn's."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from hf_softext.functional.logistic_regression import logistic_regression


@pytest.mark.parametrize(("classes", "c"), [(4, 1.0), (4, 0.01), (2, 0.5), (1, 1.0)])
def test_optimum(classes, c):
    features, labels = torch.randn(63, 9, dtype=torch.float64), torch.arange(63) % classes
    weight, bias = logistic_regression(features, labels, classes, c=c)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    loss = F.cross_entropy(features @ weight.T + bias, labels)
    loss = loss + weight.square().sum() / (2 * c * 63)
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-5
    if classes > 1:
        theirs = LogisticRegression(C=c * (2 if classes == 2 else 1), tol=1e-10, max_iter=10_000)
        theirs.fit(features.numpy(), labels.numpy())
        expected = torch.tensor(theirs.predict_proba(features.numpy()))
        found = (features @ weight.T + bias).softmax(-1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_mistakes():
    features, labels = torch.randn(63, 9), torch.arange(63) % 4
    with pytest.raises(ValueError, match="c=0 must be above 0"):
        logistic_regression(features, labels, 4, c=0)
    with pytest.raises(ValueError, match="iterations=2 were not enough"):
        logistic_regression(features, labels, 4, iterations=2)
