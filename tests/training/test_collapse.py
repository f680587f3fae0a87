"""The callback counts the rows of the logged steps, no others, and its numbers reach the log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from hf_softext.functional.softmax_collapse import softmax_collapse
from hf_softext.training.collapse import SoftmaxCollapseCallback
from tests.models import model

LLAMA = model("llama")
ROOT = Path(__file__).parents[2]
QUICK = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 2,
    # the weights stay, so that what was counted can be counted again
    "learning_rate": 0.0,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
# its name changed in transformers 5.23
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in hf.TrainingArguments.__dataclass_fields__
)


def confident(scale=60.0):
    """A llama whose logits are large, so that some softmax rows saturate."""
    llama = LLAMA.build()
    llama.lm_head.weight.data.mul_(scale)
    return llama


def rows(llama, count=16):
    """Half of the labels are what the model says, a few are not there, lengths differ."""
    ids = torch.randint(3, 50, (count, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        said = llama(ids).logits.argmax(dim=-1)
    found = []
    for index in range(count):
        labels = ids[index].clone()
        labels[1::2] = said[index, :-1][0::2]
        mask = torch.ones(9, dtype=torch.long)
        labels[: index % 4], mask[: index % 4] = -100, 0
        found.append({"input_ids": ids[index], "labels": labels, "attention_mask": mask})
    return found


def shares(llama, data, dtype=None):
    """By hand: shift the logits, drop the ignored, one batch of everything."""
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    with torch.no_grad():
        logits = llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    kept = batch["labels"][:, 1:] != -100
    counts = softmax_collapse(
        logits[:, :-1][kept], batch["labels"][:, 1:][kept], dtype=dtype or torch.float32
    )
    return {
        "softmax_saturated": counts.saturated.item() / counts.rows.item(),
        "zero_loss": counts.zero_loss.item() / counts.rows.item(),
    }


def trainer(folder, llama, data, callback=None, watch=True, **given):
    args = hf.TrainingArguments(str(folder), **{**QUICK, **given})
    trained = hf.Trainer(llama, args, train_dataset=data, eval_dataset=data[:4])
    if callback is not None and watch:
        callback.watch(trained)
    elif callback is not None:
        trained.add_callback(callback)
    return trained


def lines(trained):
    return [line for line in trained.state.log_history if "loss" in line]


def test_shares_are_those_of_the_logged_steps(tmp_path):
    llama = confident()
    data = rows(llama)
    trained = trainer(tmp_path, llama, data, SoftmaxCollapseCallback(threshold=1))
    trained.train()
    # steps 2 and 4 of four rows each
    expected = [shares(llama, data[4:8]), shares(llama, data[12:16])]
    assert 0 < expected[0]["zero_loss"] < expected[0]["softmax_saturated"] < 1
    assert expected[0] != expected[1]
    for line, share in zip(lines(trained), expected, strict=True):
        assert {key: line[key] for key in share} == pytest.approx(share)
    assert not llama._forward_hooks


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"logging_steps": 1}, [(0, 4), (4, 8), (8, 12), (12, 16)]),
        ({"logging_first_step": True, "logging_steps": 3}, [(0, 4), (8, 12)]),
        ({"logging_steps": 0.5}, [(4, 8), (12, 16)]),
        ({"logging_strategy": "epoch"}, [(0, 16)]),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}, [(4, 8), (12, 16)]),
        ({CHECKPOINTING: True}, [(4, 8), (12, 16)]),
    ],
    ids=str,
)
def test_which_steps_count(given, parts, tmp_path):
    llama = confident()
    data = rows(llama)
    trained = trainer(tmp_path, llama, data, SoftmaxCollapseCallback(threshold=1), **given)
    trained.train()
    expected = [shares(llama, data[start:end])["zero_loss"] for start, end in parts]
    assert [line["zero_loss"] for line in lines(trained)] == pytest.approx(expected)


def test_evaluation_does_not_count_and_training_is_not_changed(tmp_path):
    found = []
    for callback in (SoftmaxCollapseCallback(threshold=1), None):
        llama = confident()
        data = rows(llama)
        trained = trainer(
            tmp_path, llama, data, callback, learning_rate=1e-3, logging_steps=1,
            eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        trained.train()
        found.append(trained)
    ours, plain = found
    evaluations = [line for line in ours.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 4
    assert all("zero_loss" not in line for line in evaluations)
    assert [line["loss"] for line in lines(ours)] == [line["loss"] for line in lines(plain)]
    pairs = zip(ours.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    # the first step is before the weights moved; nothing of the evaluation is in it
    assert lines(ours)[0]["zero_loss"] == pytest.approx(shares(confident(), data[:4])["zero_loss"])


class Reporter(hf.TrainerCallback):
    """As an integration of `report_to`: it is in the Trainer before any callback of the user."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_numbers_reach_reporters_that_were_there_before(tmp_path):
    llama = confident()
    reporter = Reporter()
    trained = trainer(tmp_path, llama, rows(llama))
    trained.add_callback(reporter)
    SoftmaxCollapseCallback(threshold=1).watch(trained)
    trained.train()
    reported = [line["zero_loss"] for line in reporter.seen if "loss" in line]
    assert reported == [line["zero_loss"] for line in lines(trained)]
    assert len(reported) == 2


def test_plain_callback_logs_and_says_what_reporters_miss(tmp_path):
    llama = confident()
    data = rows(llama)
    trained = trainer(tmp_path, llama, data, SoftmaxCollapseCallback(threshold=1), watch=False)
    trained.train()
    expected = shares(llama, data[4:8])["zero_loss"]
    assert lines(trained)[0]["zero_loss"] == pytest.approx(expected)
    trained.args.report_to = ["tensorboard"]
    with pytest.warns(UserWarning, match=r"\['tensorboard'\].*add it with watch\(trainer\)"):
        trained.train()


def test_warns_once_a_run_in_one_line(tmp_path):
    llama = confident()
    trained = trainer(tmp_path, llama, rows(llama), SoftmaxCollapseCallback(), logging_steps=1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="Softmax collapse") as caught:
            trained.train()
        assert len(caught) == 1
        text = str(caught[0].message)
        assert "\n" not in text
        assert f"{lines(trained)[0]['zero_loss']:.1%}" in text
        for way in ("StableMax loss", "PerpGradCallback", "float32 logits"):
            assert way in text
    quiet = trainer(tmp_path, LLAMA.build(), rows(llama), SoftmaxCollapseCallback())
    quiet.train()
    assert [line["zero_loss"] for line in lines(quiet)] == [0, 0]


def test_resumed_run_logs_what_the_uninterrupted_one_did(tmp_path):
    given = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    runs = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        llama = confident()
        data = rows(llama)
        trained = trainer(tmp_path, llama, data, SoftmaxCollapseCallback(threshold=1), **given)
        trained.train(resume_from_checkpoint=checkpoint)
        runs.append([(line["step"], line["zero_loss"]) for line in lines(trained)])
    assert len(runs[0]) == 4
    assert runs[0] == runs[1]


def test_half_precision_counts_in_the_dtype_of_the_loss(tmp_path):
    llama = confident().to(torch.bfloat16)
    data = rows(llama)
    in_single, in_half = (shares(llama, data[4:8], d) for d in (torch.float32, torch.bfloat16))
    assert in_single != in_half
    for dtype, expected in ((None, in_single), (torch.bfloat16, in_half)):
        callback = SoftmaxCollapseCallback(threshold=1, dtype=dtype)
        trained = trainer(tmp_path, llama, data, callback)
        trained.train()
        assert {key: lines(trained)[0][key] for key in expected} == pytest.approx(expected)


def test_loss_function_of_the_trainer_gets_counted_and_given_back(tmp_path):
    llama = confident()
    data = rows(llama)
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append(labels)
        logits, labels = outputs.logits[:, :-1], labels[:, 1:]
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / num_items_in_batch

    trained = trainer(tmp_path, llama, data, SoftmaxCollapseCallback(threshold=1))
    trained.compute_loss_func = loss
    trained.train()
    assert trained.compute_loss_func is loss
    assert len(seen) == 8
    expected = [shares(llama, data[4:8]), shares(llama, data[12:16])]
    for line, share in zip(lines(trained), expected, strict=True):
        assert {key: line[key] for key in share} == pytest.approx(share)


class Classifier(nn.Module):
    """Not of transformers: returns what it is told to."""

    def __init__(self, form="dict", classes=3):
        super().__init__()
        self.linear = nn.Linear(4, classes)
        self.linear.weight.data.mul_(200)
        self.form = form

    def forward(self, values, labels=None):
        logits = self.linear(values)
        target = labels.long().clamp(0, logits.shape[-1] - 1)
        loss = F.cross_entropy(logits, target)
        if self.form == "tuple":
            return loss, logits
        if self.form == "none":
            return {"loss": loss, "logits": None}
        return {"loss": loss, "logits": logits.long() if self.form == "integer" else logits}


def examples(dtype=torch.long):
    values = torch.randn(16, 4)
    return [{"values": v, "labels": torch.tensor(i % 3, dtype=dtype)} for i, v in enumerate(values)]


@pytest.mark.parametrize("outside", [(), (-1, 3)])
def test_classifier_is_not_shifted(outside, tmp_path):
    classifier, data = Classifier(), examples()
    for row, label in zip(data[4:], outside, strict=False):
        row["labels"] = torch.tensor(label)
    trained = trainer(tmp_path, classifier, data, SoftmaxCollapseCallback(threshold=1))
    trained.train()
    kept = data[4 + len(outside) : 8]
    values, labels = (torch.stack([row[key] for row in kept]) for key in data[0])
    counts = softmax_collapse(classifier.linear(values), labels)
    assert counts.saturated > 0
    assert lines(trained)[0]["softmax_saturated"] == counts.saturated.item() / len(kept)


@pytest.mark.parametrize(
    ("form", "classes", "dtype", "message"),
    [
        ("tuple", 3, torch.long, "the model returns no logits"),
        ("none", 3, torch.long, "the model returns no logits"),
        ("dict", 3, torch.float32, "labels of shape .* torch.float32 .* no classification"),
        ("dict", 1, torch.long, r"logits of shape \(2, 1\) .* which is no classification"),
        ("integer", 3, torch.long, "torch.int64, which is no classification"),
    ],
)
def test_nothing_to_count_is_said_once(form, classes, dtype, message, tmp_path):
    classifier = Classifier(form, classes)
    trained = trainer(tmp_path, classifier, examples(dtype), SoftmaxCollapseCallback())
    with pytest.warns(UserWarning, match=message) as caught:
        trained.train()
    assert len(caught) == 1
    assert all("zero_loss" not in line for line in lines(trained))


def test_label_smoothing_takes_the_labels_away(tmp_path):
    llama = LLAMA.build()
    callback = SoftmaxCollapseCallback()
    trained = trainer(tmp_path, llama, rows(llama), callback, label_smoothing_factor=0.1)
    with pytest.warns(UserWarning, match="gets no labels, as label smoothing"):
        trained.train()


def test_all_labels_ignored(tmp_path):
    llama = confident()
    data = [{**row, "labels": torch.full((9,), -100)} for row in rows(llama)]
    trained = trainer(
        tmp_path, llama, data, SoftmaxCollapseCallback(), logging_nan_inf_filter=False
    )
    with pytest.warns(UserWarning, match="found no row with a label"):
        trained.train()


def test_nan_logits_are_rows_without_collapse(tmp_path):
    llama = confident()
    data = rows(llama)
    llama.lm_head.weight.data.fill_(float("nan"))
    trained = trainer(tmp_path, llama, data, SoftmaxCollapseCallback())
    trained.train()
    assert [line["zero_loss"] for line in lines(trained)] == [0, 0]


def test_hook_is_gone_after_an_exception_and_another_run(tmp_path):
    llama = confident()
    data = rows(llama)

    class Stop(hf.TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            raise RuntimeError("ours")

    callback, stop = SoftmaxCollapseCallback(threshold=1), Stop()
    trained = trainer(tmp_path, llama, data, callback, logging_steps=1)
    trained.add_callback(stop)
    with pytest.raises(RuntimeError, match="ours"):
        trained.train()
    callback.remove()
    assert not llama._forward_hooks
    with pytest.raises(RuntimeError, match="ours"):
        trained.train()
    trained.remove_callback(stop)
    trained.train()
    assert not llama._forward_hooks
    # the half of a step before the exception is forgotten
    expected = shares(llama, data[:4])["zero_loss"]
    assert lines(trained)[0]["zero_loss"] == pytest.approx(expected)


def test_threshold_is_a_share():
    with pytest.raises(ValueError, match=r"threshold=1\.5 must be a share"):
        SoftmaxCollapseCallback(threshold=1.5)


TWO = """
import pathlib, sys, torch
torch.set_num_threads(1)
from hf_softext.training.collapse import SoftmaxCollapseCallback
from tests.processes import leave
from tests.training.test_collapse import QUICK, confident, rows, shares, lines, trainer

llama = confident()
data = rows(llama)
trained = trainer(sys.argv[1], llama, data, SoftmaxCollapseCallback(threshold=1),
                  logging_steps=1, max_steps=2)
trained.train()
assert trained.accelerator.num_processes == 2
expected = [shares(llama, data[:8]), shares(llama, data[8:16])]
assert expected[0] != expected[1] and not llama._forward_hooks
for line, share in zip(lines(trained), expected, strict=True):
    for key, value in share.items():
        assert abs(line[key] - value) < 1e-9, (line, share)
pathlib.Path(f"{sys.argv[1]}-agrees-{trained.args.process_index}").touch()
leave()
"""


@pytest.mark.slow
def test_two_processes_count_together(tmp_path):
    program = tmp_path / "two.py"
    program.write_text(TWO, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(program), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    agreeing = sorted(path.name for path in tmp_path.glob("*agrees*"))
    assert agreeing == ["out-agrees-0", "out-agrees-1"]


def test_other_steps_cost_nothing(tmp_path):
    class Hooks(hf.TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            self.seen.append(len(model._forward_hooks))

        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            assert not model._forward_hooks

    llama, hooks = confident(), Hooks()
    trained = trainer(tmp_path, llama, rows(llama), SoftmaxCollapseCallback(threshold=1))
    trained.add_callback(hooks)
    trained.train()
    assert hooks.seen == [0, 1, 0, 1]
