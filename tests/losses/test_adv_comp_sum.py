"""Comp-sum under perturbation: the plain loss as a limit, the norm, and an attack."""

import pytest
import torch

from hf_softext.losses.adv_comp_sum import AdvCompSumLoss
from hf_softext.losses.comp_sum import CompSumLoss


def batch(rows=6, classes=5):
    z = torch.randn(rows, classes, dtype=torch.float64).mul(2).requires_grad_()
    moved = (z.detach() + torch.randn(rows, classes)).requires_grad_()
    return z, moved, torch.arange(rows) % classes


@pytest.mark.parametrize(("tau", "rho"), [(0.0, 1.0), (1.0, 0.5), (1.7, 2.0)])
def test_equals_the_formula(tau, rho):
    z, moved, y = batch()
    found = AdvCompSumLoss(tau, rho, nu=0.7)(z, y, perturbed_logits=moved)
    rows = []
    for i, k in enumerate(y.tolist()):
        others = [c for c in range(5) if c != k]
        u = ((z[i, others] - z[i, k]) / rho).exp().sum()
        first = (1 + u).log() if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        change = (moved[i, k] - moved[i, others]) - (z[i, k] - z[i, others])
        rows.append(first + 0.7 * change.square().sum().sqrt())
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (z, moved)),
        torch.autograd.grad(expected, (z, moved)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_without_perturbation_it_is_comp_sum():
    z, _, y = batch()
    plain = CompSumLoss(1.5)(z, y)
    loss = AdvCompSumLoss(1.5)
    same = z.detach().clone().requires_grad_()
    value = loss(z, y, perturbed_logits=same)
    value.backward()
    assert torch.equal(value, plain)
    assert torch.equal(same.grad, torch.zeros_like(same))
    assert z.grad.isfinite().all()
    # nor does a number added to all logits change anything
    torch.testing.assert_close(loss(z, y, perturbed_logits=z + torch.arange(6.0)[:, None]), plain)
    torch.testing.assert_close(loss.eval()(z, y), plain)
    assert AdvCompSumLoss(nu=0)(z, y, perturbed_logits=z * 9) == CompSumLoss()(z, y)


def test_the_label_counts_for_every_other_class():
    z, _, y = batch()
    one = torch.zeros_like(z).scatter(1, y[:, None], 1.0)
    loss = AdvCompSumLoss()
    torch.testing.assert_close(
        loss(z, y, perturbed_logits=z + one) - loss(z, y, perturbed_logits=z),
        torch.tensor(4.0).double().sqrt(),
    )


def test_gradcheck_through_both():
    z, moved, y = batch()
    loss = AdvCompSumLoss(0.5)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, y, perturbed_logits=b), (z, moved))


def test_an_attack_raises_its_objective_row_by_row():
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    y = torch.tensor([0, 1, 2, -100, 0])
    loss, z = AdvCompSumLoss(), layer(x)
    at = (x + 0.01 * torch.randn(5, 4)).requires_grad_()
    begin = loss.attack_objective(z, y, layer(at))
    (gradient,) = torch.autograd.grad(begin, at)
    assert torch.equal(gradient[3], torch.zeros(4))
    assert loss.attack_objective(z, y, layer(at + 0.01 * gradient)) > begin
    # the gradient of a row is its own whatever else is in the batch
    (alone,) = torch.autograd.grad(loss.attack_objective(z[:1], y[:1], layer(at)[:1]), at)
    torch.testing.assert_close(alone[0], gradient[0])
    own = loss.attack_objective(z.detach().requires_grad_(), y, layer(at))
    assert own.requires_grad
    assert loss.attack_objective(z, y, z) == 0


def test_what_is_refused():
    z, moved, y = batch()
    with pytest.raises(ValueError, match="needs perturbed_logits"):
        AdvCompSumLoss()(z, y)
    with pytest.raises(ValueError, match="a number for each logit"):
        AdvCompSumLoss()(z, y, perturbed_logits=moved[:, :3])
    for argument in ({"tau": -1.0}, {"rho": 0.0}, {"nu": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}="):
            AdvCompSumLoss(**argument)
