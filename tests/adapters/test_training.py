"""The Trainer with an adapter: it learns, keeps the adapter alone, and resumes to the last bit."""

import subprocess
import sys

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model

from hf_softext.adapters.snnk.config import SnnkConfig
from tests.adapters.models import QUIET, classifier, logits

# the newest transformers asks for a peft that is not out everywhere, for the sake of MoE
pytestmark = [QUIET, pytest.mark.usefixtures("any_peft")]


@pytest.fixture
def any_peft(monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)


def rows():
    ids = torch.randint(3, 50, (24, 9), generator=torch.Generator().manual_seed(4))
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]


def build(native, **given):
    model = classifier()
    if native:
        model.add_adapter(SnnkConfig(num_features=4, **given), "default")
        return model
    return get_peft_model(model, SnnkConfig(num_features=4, task_type="SEQ_CLS", **given))


def trainer(folder, native, model=None, **given):
    given = {"max_steps": 6, "save_steps": 3, "learning_rate": 0.03} | given
    arguments = hf.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **given,
    )
    return hf.Trainer(
        model=build(native) if model is None else model,
        args=arguments,
        train_dataset=rows(),
        eval_dataset=rows(),
    )


@pytest.mark.parametrize("save_projection", [True, False])
def test_a_resumed_run_is_the_uninterrupted_one(save_projection, tmp_path):
    def run(name):
        model = build(False, save_projection=save_projection)
        return trainer(tmp_path / name, False, model)

    whole = run("whole")
    start = logits(whole.model)
    whole.train()
    assert (logits(whole.model) - start).abs().max() > 1e-3
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert not (checkpoint / "model.safetensors").exists()
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    again = PeftModel.from_pretrained(classifier(), tmp_path / "whole" / "checkpoint-6")
    assert torch.equal(logits(again), logits(whole.model))


def test_an_adapter_of_transformers_own_is_trained(tmp_path):
    run = trainer(tmp_path, True)
    run.train()
    again = classifier()
    again.load_adapter(tmp_path / "checkpoint-6")
    assert torch.equal(logits(again), logits(run.model))
    assert not torch.equal(logits(again), logits(classifier()))


def test_it_learns_and_the_best_comes_back(tmp_path):
    run = trainer(
        tmp_path,
        False,
        max_steps=300,
        learning_rate=0.01,
        save_steps=60,
        eval_strategy="steps",
        eval_steps=60,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        gradient_checkpointing=True,
    )
    before = run.evaluate()["eval_loss"]
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    after = run.evaluate()["eval_loss"]
    assert after == pytest.approx(min(losses[1:]))
    assert after < before * 2 / 3


def test_two_steps_of_the_optimizer_move_gate_then_readout():
    model = build(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved = []
    for _ in range(2):
        batch = {
            "input_ids": torch.stack([row["input_ids"] for row in rows()]),
            "labels": torch.stack([row["labels"] for row in rows()]),
        }
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved.append({n for n, p in model.named_parameters() if not torch.equal(p, start[n])})
    assert all("snnk_gate" in name or "classifier" in name for name in moved[0])
    assert any("snnk_weight" in name for name in moved[1])


def test_two_processes_have_one_adapter():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, "2", "-m", "tests.adapters.two_processes"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
