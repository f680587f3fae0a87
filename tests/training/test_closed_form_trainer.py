"""One pass, a solve, a checkpoint: alone, with others, and interrupted."""

import json

import pytest
import torch
import transformers as hf
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import IterableDataset

from hf_softext.adapters.snnk.head import SnnkHead
from hf_softext.training.closed_form_trainer import ClosedFormHeadTrainer
from tests.adapters.closed_form_work import batches, fitted, model, rows
from tests.processes import run_two
from tests.training.closed_form_steps import arguments, result, trainer


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


def test_it_fits_saves_and_evaluates(tmp_path):
    running = trainer(tmp_path, {"ridge": 0.01})
    output = running.train()
    expected = fitted(batches(), ridge=0.01)
    found = result(running)
    close(torch.cat((found["weight"], found["bias"][:, None]), 1), expected)
    assert output.global_step == 7
    assert output.training_loss == running.fit.mean_squared_error
    # all that is left is one whole checkpoint
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    folder = tmp_path / "checkpoint-7"
    assert not [*folder.glob("*.bin"), *folder.glob("*.tmp")]
    history = state_of(folder)["log_history"]
    assert history[-1]["eval_accuracy"] == pytest.approx(found["accuracy"].item())
    assert any(line.get("train_loss") == output.training_loss for line in history)
    # squared error, of which cross-entropy would be around log(3)
    logits = running.predict(running.eval_dataset).predictions
    hot = torch.nn.functional.one_hot(torch.tensor(rows(20)["labels"]), 3)
    error = (torch.tensor(logits) - hot).square().mean().item()
    assert history[-1]["eval_loss"] == pytest.approx(error, rel=1e-5)


def test_a_checkpoint_is_loaded_as_its_card_says(tmp_path, monkeypatch):
    running = trainer(tmp_path)
    running.train()
    # the lines are for a program that runs beside the folder
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "checkpoint-7" / "README.md").read_text(encoding="utf-8")
    assert "closed form to 13 rows" in card
    space = {}
    exec(card.split("```")[1].removeprefix("python"), space)
    back = space["model"].double().eval()
    assert isinstance(back.classifier, SnnkHead)
    tokens = torch.tensor(rows()["input_ids"])
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, running.model.eval()(tokens).logits)


def test_two_processes_find_what_one_does(tmp_path):
    one = trainer(tmp_path / "one")
    one.train()
    run_two("tests.training.closed_form_steps", str(tmp_path))
    two = load_file(tmp_path / "two.safetensors")
    assert two["rows"].item() == 13
    for name, value in result(one).items():
        # the Trainer's mean loss of several processes has the rows that fill up batches in it
        if name != "eval_loss":
            close(two[name], value)
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["checkpoint-4"]
    saved = load_file(tmp_path / "two" / "checkpoint-4" / "snnk_head.safetensors")
    assert torch.equal(saved["out.weight"], two["weight"])


class PowerFailureError(Exception):
    pass


class Stop(hf.TrainerCallback):
    """Breaks a pass off, or counts how long it is."""

    def __init__(self, after=None):
        self.after, self.steps = after, 0

    def on_step_end(self, args, state, control, **kwargs):
        if self.after == self.steps:
            raise PowerFailureError
        self.steps += 1


def test_a_pass_that_was_broken_off_goes_on(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    again = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(PowerFailureError):
        trainer(tmp_path, {"callbacks": [Stop(after=5)]}, **again).train()
    file = tmp_path / "closed_form-0.safetensors"
    assert file.is_file()
    count = Stop()
    running = trainer(tmp_path, {"callbacks": [count]}, **again)
    running.train(resume_from_checkpoint=True)
    # batches 5, 6 and 7, as the sums were kept after the fourth
    assert count.steps == 3
    for name, value in result(whole).items():
        close(result(running)[name], value)
    assert not file.exists()
    # and a pass that was finished needs no other
    count = Stop()
    other = trainer(tmp_path, {"callbacks": [count]}, **again)
    output = other.train(resume_from_checkpoint=True)
    assert count.steps == 0
    assert torch.equal(other.model.classifier.out.weight, running.model.classifier.out.weight)
    assert output.training_loss == pytest.approx(running.fit.mean_squared_error)
    assert output.global_step == 7


def test_a_run_that_was_broken_off_in_its_evaluation_makes_up_for_it(tmp_path, monkeypatch):
    running = trainer(tmp_path)

    def fail(**given):
        raise PowerFailureError

    monkeypatch.setattr(running, "evaluate", fail)
    with pytest.raises(PowerFailureError):
        running.train()
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.fit == running.fit
    history = state_of(tmp_path / "checkpoint-7")["log_history"]
    assert history == again.state.log_history
    assert "eval_accuracy" in history[-1]
    with pytest.raises(ValueError, match=r"ridge=0.001, relative=True, not 0.5"):
        trainer(tmp_path, {"ridge": 0.5}).train(resume_from_checkpoint=True)


def test_what_a_pass_cannot_go_on_from(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint and no sums"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    again = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(PowerFailureError):
        trainer(tmp_path, {"callbacks": [Stop(after=5)]}, **again).train()
    with pytest.raises(ValueError, match="other data, weights, batches or processes"):
        trainer(tmp_path, per_device_train_batch_size=3).train(resume_from_checkpoint=True)
    changed = model()
    with torch.no_grad():
        changed.bert.pooler.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match="other data, weights"):
        trainer(tmp_path, model=changed).train(resume_from_checkpoint=True)
    # the same trained weights on other features, and another layer
    for given in ({"seed": 2}, {"seed": 1, "floor": -1.0}, {"seed": 1, "normalize": 2.0}):
        changed = model()
        weights = changed.classifier.state_dict()
        changed.classifier = SnnkHead(16, 3, 10, **given).double()
        changed.classifier.out.load_state_dict(
            {name: weights[f"out.{name}"] for name in ("weight", "bias")}
        )
        with pytest.raises(ValueError, match="other data, weights"):
            trainer(tmp_path, model=changed).train(resume_from_checkpoint=True)
    changed = model()
    with pytest.raises(ValueError, match="other data, weights"):
        trainer(tmp_path, {"head": changed.bert.pooler.dense}, model=changed).train(
            resume_from_checkpoint=True
        )
    file = tmp_path / "closed_form-0.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="has no trainer_state"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_failure_while_saving_leaves_no_checkpoint(tmp_path, monkeypatch):
    running = trainer(tmp_path)

    def fail(folder):
        raise OSError("no space left")

    monkeypatch.setattr(running.model.classifier, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        running.train()
    assert not (tmp_path / "checkpoint-7").exists()


def test_without_saving_or_a_random_head(tmp_path):
    plain = model(head=None)
    running = trainer(tmp_path, model=plain, save_strategy="no", eval_strategy="no")
    before = plain.classifier.weight.clone()
    running.train()
    assert not torch.equal(plain.classifier.weight, before)
    assert not list(tmp_path.iterdir())


class Stream(IterableDataset):
    def __iter__(self):
        yield {"input_ids": [1, 2], "labels": 0}


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="max_steps=3"):
        trainer(tmp_path, max_steps=3)
    with pytest.raises(ValueError, match="dataloader_drop_last"):
        trainer(tmp_path, dataloader_drop_last=True)
    with pytest.raises(ValueError, match="ridge=-1"):
        trainer(tmp_path, {"ridge": -1})
    headless = model()
    headless.classifier = nn.Identity()
    with pytest.raises(ValueError, match="no linear layer"):
        trainer(tmp_path, model=headless).train()
    args = arguments(tmp_path, eval_strategy="no", max_steps=-1)
    one_class = Dataset.from_dict({**rows(), "labels": [1] * 13})
    with pytest.raises(ValueError, match="every label is class 1"):
        ClosedFormHeadTrainer(model=model(), args=args, train_dataset=one_class).train()
    streamed = arguments(tmp_path, eval_strategy="no", max_steps=1)
    with pytest.raises(ValueError, match="train_dataset has no length"):
        ClosedFormHeadTrainer(model=model(), args=streamed, train_dataset=Stream())
