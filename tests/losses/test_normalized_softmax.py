"""Cosines: what does not matter, the best that can be reached, folding, and unseen classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_softext.functional.unit_rows import unit_rows
from hf_softext.losses.normalized_softmax import NormalizedSoftmaxLoss, PrototypeClassifier

NORMS = ["l2", "layernorm+l2"]


def batch(rows=7, classes=5, width=6, dtype=torch.float64):
    features = (torch.randn(rows, width, dtype=dtype) + 0.5).requires_grad_()
    head = torch.nn.Linear(width, classes).to(dtype)
    return features, head, head(features), torch.arange(rows) % classes


@pytest.mark.parametrize("norm", NORMS)
def test_is_cross_entropy_of_cosines(norm):
    features, head, logits, labels = batch()
    found = NormalizedSoftmaxLoss(0.1, norm)(
        logits, labels, features=features, head_weight=head.weight
    )
    x = features if norm == "l2" else F.layer_norm(features, features.shape[-1:], eps=1e-14)
    cosine = F.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    expected = F.cross_entropy(cosine / 0.1, labels)
    torch.testing.assert_close(found, expected)
    leaves = (features, head.weight)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, retain_graph=True),
        torch.autograd.grad(expected, leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    # what distributed training waits for
    (bias,) = torch.autograd.grad(found, head.bias)
    assert torch.equal(bias, torch.zeros(5, dtype=torch.float64))


def test_lengths_do_not_matter_and_the_gradient_is_orthogonal():
    features, head, logits, labels = batch()
    loss = NormalizedSoftmaxLoss()
    long = features * torch.logspace(-3, 3, 7)[:, None]
    short = head.weight * torch.logspace(2, -2, 5)[:, None]
    found = loss(logits, labels, features=features, head_weight=head.weight)
    scaled = loss(logits, labels, features=long, head_weight=short)
    torch.testing.assert_close(found, scaled)
    (gradient,) = torch.autograd.grad(found, features)
    assert gradient.abs().max() > 1e-3
    assert (gradient * features).sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_the_bound_is_reached_by_a_simplex(classes):
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    labels, loss = torch.arange(classes), NormalizedSoftmaxLoss(0.3)
    found = loss(torch.zeros_like(corners), labels, features=corners, head_weight=corners)
    bound = math.log1p((classes - 1) * math.exp(-classes / (0.3 * (classes - 1))))
    assert found.item() == pytest.approx(bound, abs=1e-12)
    # the temperature at which a probability can just be reached
    sure = 0.99
    temperature = classes / ((classes - 1) * math.log((classes - 1) * sure / (1 - sure)))
    scores = NormalizedSoftmaxLoss(temperature).scores(corners, corners)
    torch.testing.assert_close(
        scores.softmax(-1).diagonal(), torch.full_like(corners[0], sure), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("norm", NORMS)
def test_fold_decides_as_the_loss_did(norm):
    features, head, _, _ = batch(rows=400, dtype=torch.float32)
    with torch.no_grad():
        head.weight *= torch.logspace(-1, 1, 5)[:, None]
        head.bias += 5
    loss = NormalizedSoftmaxLoss(0.2, norm)
    scores = loss.scores(features, head.weight)
    assert (scores.argmax(-1) != head(features).argmax(-1)).float().mean() > 0.3
    loss.fold(head)
    assert torch.equal(scores.argmax(-1), head(features).argmax(-1))
    x = features if norm == "l2" else features - features.mean(-1, keepdim=True)
    torch.testing.assert_close(head(features), scores * x.norm(dim=-1, keepdim=True))
    plain = torch.nn.Linear(6, 5, bias=False)
    loss.fold(plain)
    assert plain.bias is None


def test_a_row_of_zeros_has_an_ordinary_gradient():
    zero = torch.zeros(1, 4, requires_grad=True)
    head = torch.randn(3, 4)
    loss = NormalizedSoftmaxLoss(1.0)
    value = loss(torch.zeros(1, 3), torch.tensor([0]), features=zero, head_weight=head)
    value.backward()
    assert value.item() == pytest.approx(math.log(3))
    assert 0 < zero.grad.norm() <= 2
    assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert unit_rows(torch.tensor([1.0, float("nan")])).isnan().all()


def test_half_precision_features_are_normalised_in_float32():
    features, head, logits, labels = batch(dtype=torch.float32)
    # squares of 300 exceed half precision
    wide = (features.detach() * 300).half()
    loss = NormalizedSoftmaxLoss()
    given = {"head_weight": head.weight}
    found = loss(logits.half(), labels, features=wide, **given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits, labels, features=wide.float(), **given))


def test_what_is_refused():
    features, head, logits, labels = batch()
    loss = NormalizedSoftmaxLoss().eval()
    with pytest.raises(ValueError, match="also in evaluation"):
        loss(logits, labels)
    with pytest.raises(ValueError, match="head_weight has 4 rows"):
        loss(logits, labels, features=features, head_weight=head.weight[:4])
    with pytest.raises(ValueError, match="temperature=0"):
        NormalizedSoftmaxLoss(temperature=0)
    with pytest.raises(ValueError, match="feature_norm='L2'"):
        NormalizedSoftmaxLoss(feature_norm="L2")
    with pytest.raises(ValueError, match="threshold=2"):
        PrototypeClassifier(threshold=2)
    with pytest.raises(ValueError, match="below 0"):
        PrototypeClassifier().fit(torch.randn(2, 3), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="do not fit"):
        PrototypeClassifier().fit(torch.randn(2, 3), torch.tensor([0]))


@pytest.mark.parametrize("norm", NORMS)
def test_prototypes_name_unseen_classes(norm):
    means = torch.randn(3, 8)
    labels = torch.tensor([7, 3, 11]).repeat(20)
    lengths = torch.logspace(-2, 2, 60)[:, None]
    features = (means.repeat(20, 1) + 0.1 * torch.randn(60, 8)) * lengths
    found = PrototypeClassifier(threshold=0.8, feature_norm=norm).fit(features, labels)
    assert found.classes.tolist() == [3, 7, 11]
    assert torch.equal(found.predict(features), labels)
    torch.testing.assert_close(found.prototypes.norm(dim=-1), torch.ones(3))
    one = features[labels == 3]
    one = one if norm == "l2" else one - one.mean(-1, keepdim=True)
    expected = F.normalize(F.normalize(one, dim=-1).mean(0), dim=0)
    torch.testing.assert_close(found.prototypes[0], expected)
    # the opposite of what is known is not known
    assert found.predict(-features).tolist() == [-1] * 60
    found.threshold = None
    assert set(found.predict(-features).tolist()) <= {3, 7, 11}
    assert found.cosine(features.reshape(4, 15, 8)).shape == (4, 15, 3)
