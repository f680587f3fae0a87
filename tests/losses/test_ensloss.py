"""EnsLoss with the authors' draws, what every draw gives, and draws that repeat."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.losses.ensloss import EnsLoss, derivatives

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("value", ["0.0", "0.5", "1.0"])
def test_equals_the_authors_code(value, monkeypatch):
    data = load_file(GOLDEN / f"ensloss_lambda_{value}.safetensors")
    loss = EnsLoss(boxcox_lambda=float(value))
    monkeypatch.setattr(loss, "draw", lambda like: data["z"].reshape(like.shape))
    logits = data["logits"].clone().requires_grad_()
    got = loss(logits, data["labels"])
    got.backward()
    torch.testing.assert_close(got, data["loss"])
    torch.testing.assert_close(logits.grad, data["grad"], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("boxcox_lambda", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_derivatives_are_those_of_a_convex_loss(boxcox_lambda):
    margins = torch.randn(40, 3).sort(dim=0).values
    got = derivatives(margins, torch.randn(40, 3), boxcox_lambda)
    assert ((got < 0) & (got >= -1 - 2e-6)).all()
    low = got.masked_fill(margins > 1, torch.inf)
    assert (low[1:] >= low[:-1]).all()
    assert ((got * margins)[margins > 1] >= -1 - 1e-5).all()


def test_draws_differ_by_step_and_seed_and_repeat_after_a_resume():
    logits, labels = torch.randn(9, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    loss = EnsLoss(seed=3)
    first = loss(logits, labels)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    second = loss(logits, labels)
    assert first != second
    assert EnsLoss(seed=4)(logits, labels) != first
    assert torch.equal(EnsLoss(seed=3)(logits, labels), first)
    resumed = EnsLoss(seed=3)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(logits, labels), second)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    EnsLoss()(torch.randn(3, 1, generator=torch.Generator()), torch.tensor([0, 1, 1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_lambda_is_a_function_of_the_epoch():
    loss = EnsLoss(boxcox_lambda=0.25, resample_every=2)
    seen = []
    for epoch in (0, 1, 2, 3, 3, 4, 2):
        loss.on_epoch(epoch)
        seen.append(loss.current_lambda.item())
    assert seen[0] == seen[1] == 0.25
    assert seen[2] == seen[3] == seen[4] == seen[6] != seen[5]
    assert all(-1 <= value <= 1 for value in seen)


def test_evaluation_is_the_logistic_loss_and_changes_nothing():
    loss, logits, labels = EnsLoss().eval(), torch.randn(5, 2), (torch.rand(5, 2) < 0.5).float()
    expected = torch.nn.functional.softplus(-(2 * labels - 1) * logits).mean()
    torch.testing.assert_close(loss(logits, labels), expected)
    assert loss.step == 0


def test_ignored_rows_are_out_before_the_order():
    logits, labels = torch.randn(6, 1), torch.tensor([0, -100, 1, 1, -100, 0])
    kept = labels != -100
    assert torch.equal(EnsLoss()(logits, labels), EnsLoss()(logits[kept], labels[kept]))


def test_refuses():
    with pytest.raises(ValueError, match="resample_every=0"):
        EnsLoss(resample_every=0)
    with pytest.raises(ValueError, match="boxcox_lambda=inf"):
        EnsLoss(boxcox_lambda=float("inf"))
    with pytest.raises(ValueError, match="is for 0 and 1"):
        EnsLoss()(torch.randn(2, 1), torch.tensor([0.5, 1.0]))
