"""ALDR-KL: three steps of the authors' code, bounds, and a state that repeats and merges."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.losses.aldr_kl import AldrKlLoss
from hf_softext.losses.ldr_kl import LdrKlLoss

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "aldr_kl_three_steps.safetensors")


def fitted(samples=8, **arguments):
    loss = AldrKlLoss(**arguments)
    loss.fit(torch.zeros(samples, dtype=torch.int64))
    return loss


def test_equals_three_steps_of_the_authors_code():
    loss = fitted().double()
    for step in range(3):
        logits = GOLDEN["logits"].clone().requires_grad_()
        value = loss(logits, GOLDEN["labels"], sample_index=GOLDEN["ids"])
        value.backward()
        # their log C is float32
        torch.testing.assert_close(value, GOLDEN[f"loss{step}"], atol=1e-7, rtol=0)
        torch.testing.assert_close(logits.grad, GOLDEN[f"grad{step}"], atol=1e-8, rtol=0)
        expected = GOLDEN[f"lamstate{step}"][:, 0]
        torch.testing.assert_close(loss.lambdas, expected, atol=1e-6, rtol=0)


def test_bounds_of_lambda():
    loss = fitted(3, normalize="none")
    logits = torch.tensor([[0.0, 0, 0], [1e5, 0, 0], [3, 1, -9]])
    for _ in range(3):
        loss(logits, torch.tensor([0, 1, 2]), sample_index=torch.arange(3))
    torch.testing.assert_close(loss.lambdas[0].item(), 10.0)
    assert ((loss.lambdas >= 5.0) & (loss.lambdas <= 10.0 + 1e-5)).all()
    assert loss.lambdas[1] == pytest.approx(5.0, abs=2e-3)


def test_a_sample_twice_in_a_batch_keeps_the_smaller_in_any_order():
    logits, ids = torch.tensor([[9.0, 0, 0], [0.0, 0, 0], [5.0, 0, 0]]), torch.tensor([1, 1, 0])
    kept = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        loss = fitted(2, normalize="none")
        loss(logits[order], torch.zeros(3).long(), sample_index=ids[order])
        kept.append(loss.lambdas)
    alone = fitted(2, normalize="none")
    alone(logits[:1], torch.zeros(1).long(), sample_index=ids[:1])
    assert all(torch.equal(one, kept[0]) for one in kept)
    assert kept[0][1] == alone.lambdas[1] < 10


def test_a_resume_repeats_and_needs_no_fit():
    logits, labels, ids = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([5, 0, 3, 7])
    loss = fitted()
    loss(logits, labels, sample_index=ids)
    assert loss.updates.tolist() == [1, 0, 0, 1, 0, 1, 0, 1]
    resumed = AldrKlLoss()
    resumed.load_state_dict({name: value.clone() for name, value in loss.state_dict().items()})
    second = loss(logits, labels, sample_index=ids)
    assert torch.equal(resumed(logits, labels, sample_index=ids), second)
    assert torch.equal(resumed.lambdas, loss.lambdas)
    assert resumed.step == 2


def test_evaluation_is_ldr_kl_and_changes_nothing():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
    loss = fitted().eval()
    expected = LdrKlLoss(10.0, 0.1, "l1")(logits, labels)
    assert loss(logits, labels) == expected
    assert loss(logits, labels, sample_index=torch.full((4,), 99)) == expected
    assert (loss.lambdas == 10).all()
    assert loss.step == 0


def test_a_row_that_is_nan_spoils_no_state():
    loss = fitted(2)
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0]])
    assert loss(logits, torch.tensor([0, 1]), sample_index=torch.arange(2)).isnan()
    assert loss.lambdas[0] == 10
    assert loss.lambdas[1] < 10


def test_the_process_that_saw_a_sample_last_wins(monkeypatch):
    ranks = [fitted(3), fitted(3)]
    for rank, (lam, when) in enumerate([([7.0, 8, 6], [1, 3, 2]), ([5.0, 9, 5.5], [2, 1, 2])]):
        ranks[rank].lambdas = torch.tensor(lam)
        ranks[rank].updates = torch.tensor(when)
    keys = torch.stack([2 * loss.updates + rank for rank, loss in enumerate(ranks)]).amax(0)
    values = torch.tensor([5.0, 8.0, 5.5])
    answers = iter([keys, torch.tensor(4), values])
    shown = []

    def all_reduce(tensor, op):
        shown.append(tensor.clone())
        tensor.copy_(next(answers))

    for name, value in (("is_initialized", True), ("get_world_size", 2), ("get_rank", 1)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    ranks[1].synchronize()
    # rank 1 hands over the samples that it saw last, and 0 for the others
    assert shown[2].tolist() == [5.0, 0.0, 5.5]
    assert ranks[1].lambdas.tolist() == values.tolist()
    assert ranks[1].updates.tolist() == [2, 3, 2]
    assert ranks[1].step == 4


@pytest.mark.parametrize("ids", [[0, 8], [-1, 0]])
def test_refuses_unknown_samples(ids):
    with pytest.raises(ValueError, match="from 0 to 7"):
        fitted()(torch.randn(2, 3), torch.tensor([0, 1]), sample_index=torch.tensor(ids))


def test_refuses():
    one = {"sample_index": torch.tensor([0])}
    with pytest.raises(ValueError, match="call fit"):
        AldrKlLoss()(torch.randn(1, 3), torch.tensor([0]), **one)
    with pytest.raises(ValueError, match="at least 2 classes"):
        fitted()(torch.randn(1, 1), torch.tensor([0]), **one)
    for name, value in (("lam", 0.0), ("alpha", 1.0), ("margin", -1.0), ("normalize", "l2")):
        with pytest.raises(ValueError, match=f"{name}="):
            AldrKlLoss(**{name: value})
