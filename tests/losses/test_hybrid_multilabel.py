"""The three terms, each against loops over pairs; the statistics; the ends."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from hf_softext.losses.hybrid_multilabel import HybridMultilabelLoss


def batch(rows=9, labels=5, width=6):
    y = (torch.rand(rows, labels) < 0.4).double()
    y[0] = 0
    z = torch.randn(rows, labels, dtype=torch.float64).mul(2).requires_grad_()
    return z, y, torch.randn(rows, width, dtype=torch.float64).requires_grad_()


def fitted(**arguments):
    loss = HybridMultilabelLoss(**arguments)
    seen = (torch.rand(200, 5) < torch.tensor([0.5, 0.3, 0.1, 0.5, 0.02])).double()
    seen[:, 3] = 1 - seen[:, 0]
    seen[:100, 1] = seen[:100, 0]
    loss.fit(seen)
    return loss, seen


def test_statistics_of_the_training_labels():
    loss, seen = fitted(max_weight=4)
    positives = seen.sum(0)
    expected = ((200 - positives) / positives).clamp(0.25, 4)
    assert expected[4] == 4
    torch.testing.assert_close(loss.positive_weight, expected.float())
    phi = torch.corrcoef(seen.T)
    torch.testing.assert_close(loss.label_correlation, phi.float() - torch.eye(5))
    assert loss.label_correlation[0, 3] == pytest.approx(-1)


def test_labels_that_are_constant_and_rows_that_are_ignored():
    loss = HybridMultilabelLoss()
    seen = torch.tensor([[0.0, 1, 1], [0, 1, 0], [-100, -100, -100]])
    loss.fit(seen)
    torch.testing.assert_close(loss.positive_weight, torch.tensor([10.0, 0.1, 1.0]))
    assert torch.equal(loss.label_correlation, torch.zeros(3, 3))


def test_without_weights_it_is_binary_cross_entropy():
    z, y, h = batch()
    loss, _ = fitted(correlation=0, contrast=0, max_weight=1)
    torch.testing.assert_close(
        loss(z, y, features=h), F.binary_cross_entropy_with_logits(z, y), rtol=1e-12, atol=1e-12
    )


def test_each_term_equals_a_loop_over_pairs():
    z, y, h = batch()
    loss, _ = fitted(bce=0, correlation=1, contrast=0)
    p, c = z.sigmoid(), loss.label_correlation.double()
    terms = [
        c[a, b].clamp(min=0) * (p[:, a] - p[:, b]).square()
        + (-c[a, b]).clamp(min=0) * (p[:, a] + p[:, b] - 1).square()
        for a, b in itertools.permutations(range(5), 2)
    ]
    torch.testing.assert_close(loss(z, y, features=h), torch.stack(terms).mean())

    loss, _ = fitted(bce=0, correlation=0, contrast=1, temperature=0.5)
    anchors = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        s = torch.stack([F.cosine_similarity(h[i], h[j], dim=0) / 0.5 for j in others])
        both = torch.stack([(y[i] * y[j]).sum() for j in others])
        either = torch.stack([torch.maximum(y[i], y[j]).sum() for j in others])
        w = both / either.clamp(min=1)
        if w.sum() > 0:
            anchors.append(-(w * s.log_softmax(0)).sum() / w.sum())
    # the row without labels has none to share
    assert 2 < len(anchors) < len(y)
    torch.testing.assert_close(loss(z, y, features=h), torch.stack(anchors).mean())


def test_the_correlation_is_satisfied_by_what_it_asks_for():
    loss = HybridMultilabelLoss(bce=0, correlation=1, contrast=0)
    column = torch.tensor([0.0, 1, 1, 0])
    loss.fit(torch.stack([column, column, 1 - column], 1))
    a = torch.randn(6)
    agreed = torch.stack([a, a, -a], 1)
    y = torch.zeros(6, 3)
    assert loss(agreed, y, features=a[:, None]).abs() < 1e-6
    assert loss(torch.stack([a, -a, a], 1), y, features=a[:, None]) > 0.01


def test_single_rows_and_nothing_in_common_are_finite():
    z, _, h = batch()
    loss, _ = fitted()
    y = torch.eye(5, dtype=torch.float64)
    plain = loss.eval()(z[:5], y)
    torch.testing.assert_close(loss.train()(z[:5], y, features=h[:5]), plain)
    value = loss(z[:1], y[:1], features=h[:1])
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()
    torch.testing.assert_close(value, loss.eval()(z[:1], y[:1]))


def test_gradient_and_orders():
    z, y, h = batch()
    loss, seen = fitted()
    assert torch.autograd.gradcheck(lambda z, h: loss(z, y, features=h), (z, h))
    found, order = loss(z, y, features=h), torch.randperm(5)
    other = HybridMultilabelLoss()
    other.fit(seen[:, order])
    torch.testing.assert_close(
        other(z[:, order], y[:, order], features=h), found, rtol=1e-6, atol=1e-6
    )
    with torch.no_grad():
        h[0] = 0
    loss(z, y, features=h).backward()
    assert h.grad.isfinite().all()


def test_state_is_loaded_where_nothing_was_fitted():
    z, y, h = batch()
    loss, _ = fitted()
    fresh = HybridMultilabelLoss()
    with pytest.raises(ValueError, match="call fit"):
        fresh(z, y, features=h)
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(fresh(z, y, features=h), loss(z, y, features=h))
    with pytest.raises(ValueError, match="of 5 columns, and there are 4 logits"):
        fresh(z[:, :4], y[:, :4], features=h)


@pytest.mark.parametrize(
    "argument",
    [{"bce": -1.0}, {"contrast": float("nan")}, {"temperature": 0.0}, {"max_weight": 0.5}],
)
def test_what_is_refused(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))}="):
        HybridMultilabelLoss(**argument)


def test_labels_that_cannot_be_fitted():
    with pytest.raises(ValueError, match="multi-hot"):
        HybridMultilabelLoss().fit(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no training row"):
        HybridMultilabelLoss().fit(torch.full((2, 3), -100.0))
