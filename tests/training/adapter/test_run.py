"""Adapters by name on classifiers and language models: they learn, and what the card says loads
what was measured."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from hf_softext.cli import train as commands
from hf_softext.quantization.baq import calibrate
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.training.adapter.run import train_adapter
from hf_softext.training.softext_trainer import SoftextTrainer
from tests.adapters.models import QUIET
from tests.training.adapter.work import (
    BITS,
    QUICK,
    classifier,
    labelled,
    language_model,
    load_as_said,
    loss_of,
    losses_of,
    masked_lm,
    measured,
    running,
)

ROOT = Path(__file__).parents[3]
PROGRAM = str(ROOT / "trainers" / "train_adapter.py")
pytestmark = QUIET


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return labelled(tmp_path)


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return running(tmp_path)


@pytest.mark.parametrize(
    ("adapter", "keywords", "trained"),
    [
        # gate and readout of two layers each of attention and feed-forward, V (32, 8)
        ("snnk", {"num_features": 8}, 4 * 32 * 9),
        ("lora", {"r": 2, "target_modules": ["query"]}, 2 * 2 * 2 * 32),
        ("IA3", {}, None),
    ],
)
def test_a_classifier_learns_and_loads_as_the_card_says(adapter, keywords, trained, data, tmp_path):
    model, out = masked_lm(tmp_path / "tiny"), tmp_path / "out"
    result = train_adapter(classifier(out, model, data, adapter=adapter, adapter_kwargs=keywords))
    assert result.scores["accuracy"] > 0.8
    names = {path.name for path in out.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}
    assert (
        not {"model.safetensors", "config.json", "training_args.bin", "softext_loss.json"} & names
    )
    assert not (tmp_path / "out.partial").exists()
    # the pooler, of which the checkpoint has nothing, and the head are trained and kept
    head = 32 * 32 + 32 + 3 * 32 + 3
    saved = load_file(out / "adapter_model.safetensors")
    assert {"base_model.model.bert.pooler.dense.weight", "base_model.model.classifier.bias"} <= {
        *saved
    }
    written = json.loads((out / "eval_results.json").read_text(encoding="utf-8"))
    assert trained is None or written["trained"] == trained + head
    assert written["adapter"] == adapter.lower()
    assert written["scores"] == result.scores
    again, tokenizer = load_as_said(out)
    assert loss_of(again, tokenizer, data["test_data"]) == measured(result.scores["loss"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.split("---\n")[2].startswith("\n```python\nimport hf_softext  # ")
    assert f"| accuracy | {result.scores['accuracy']:.4f} |" in card
    assert ("2310.13225" in card) == (adapter == "snnk")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        model
    )
    classify = hf.pipeline("text-classification", model=again, tokenizer=tokenizer)
    assert classify("w17 w18 w19 w20")[0]["label"] == "birds"


@pytest.mark.filterwarnings("ignore:'softplus_reweighted' replaces")
@pytest.mark.parametrize("adapter", ["snnk", "lora"])
def test_a_language_model_learns_and_loads_as_the_card_says(adapter, llama_folder, text, tmp_path):
    given = {"attention": "softplus_reweighted", "attention_parameters": {"power": 2}}
    args = language_model(tmp_path / "out", llama_folder, text, adapter=adapter, **given)
    result = train_adapter(args)
    again, tokenizer = load_as_said(tmp_path / "out")
    assert again.config._attn_implementation == "softplus_reweighted"
    assert again.config.softext["power"] == 2
    assert losses_of(again, tokenizer, text) == measured(result.losses)
    with again.disable_adapter():
        before = losses_of(again, tokenizer, text)
    assert result.losses[16] < before[16] - 0.2
    again.set_attn_implementation("sdpa")
    assert losses_of(again, tokenizer, text) != measured(result.losses)
    written = json.loads((tmp_path / "out" / "eval_results.json").read_text(encoding="utf-8"))
    plain = hf.AutoModelForCausalLM.from_pretrained(llama_folder)
    assert written["parameters"] == written["base_parameters"] == plain.num_parameters()
    assert again.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=3).shape == (
        1,
        5,
    )


def test_a_classifier_on_a_base_that_this_run_quantizes(data, tmp_path, monkeypatch):
    model, out = masked_lm(tmp_path / "tiny"), tmp_path / "out"
    result = train_adapter(classifier(out, model, data, quantization=BITS, num_train_epochs=10))
    assert result.scores["accuracy"] > 0.6
    written = json.loads((out / "eval_results.json").read_text(encoding="utf-8"))
    assert written["base_bits"] == pytest.approx(3.0, abs=0.1)
    encoder = hf.AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    assert written["base_parameters"] == encoder.num_parameters()
    again, tokenizer = load_as_said(out)
    assert sum(isinstance(module, BaqLinear) for module in again.modules()) == 12
    assert loss_of(again, tokenizer, data["test_data"]) == measured(result.scores["loss"])
    # by the path in the config, from anywhere
    monkeypatch.chdir(ROOT)
    found = AutoPeftModelForSequenceClassification.from_pretrained(out).eval()
    assert loss_of(found, tokenizer, data["test_data"]) == measured(result.scores["loss"])
    # and with the lines of the card where it was moved to
    moved = tmp_path / "elsewhere" / "out"
    moved.parent.mkdir()
    out.rename(moved)
    monkeypatch.chdir(moved.parent)
    again, tokenizer = load_as_said(moved)
    assert loss_of(again, tokenizer, data["test_data"]) == measured(result.scores["loss"])
    assert "baq" in (moved / "base" / "README.md").read_text(encoding="utf-8")


def test_a_language_model_on_a_base_that_is_quantized_in_this_run_or_was_before(
    llama_folder, text, tmp_path
):
    given = {"adapter": "snnk", "max_steps": 5}
    first = tmp_path / "first"
    result = train_adapter(
        language_model(first, llama_folder, text, quantization={**BITS, "seqlen": 32}, **given)
    )
    again, tokenizer = load_as_said(first)
    assert losses_of(again, tokenizer, text) == measured(result.losses)
    found = AutoPeftModelForCausalLM.from_pretrained(first).eval()
    assert losses_of(found, tokenizer, text) == measured(result.losses)
    calibrated = hf.AutoConfig.from_pretrained(first / "base").quantization_config["calibration"]
    assert (calibrated["sequences"], calibrated["tokens"]) == (16, 16 * 32)

    second = tmp_path / "second"
    twin = train_adapter(language_model(second, first / "base", text, **given))
    assert twin.losses == result.losses
    files = [folder / "adapter_model.safetensors" for folder in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
    # nothing but the config is written anew
    assert [path.name for path in (second / "base").iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match="is quantized already: leave out quantization"):
        train_adapter(
            language_model(tmp_path / "no", first / "base", text, quantization=BITS, **given)
        )


def stop_at(count, monkeypatch):
    calls, step = [], SoftextTrainer.compute_loss

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(SoftextTrainer, "compute_loss", stop)


@pytest.mark.parametrize("adapter", ["snnk", "lora"])
def test_an_interrupted_run_continues_to_the_same_adapter(adapter, data, tmp_path, monkeypatch):
    model = masked_lm(tmp_path / "tiny")
    given = {"adapter": adapter, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 3}
    if adapter == "snnk":
        given |= {"quantization": BITS}
    train_adapter(classifier(tmp_path / "whole", model, data, **given))
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(classifier(cut, model, data, **given))
    assert not cut.exists()
    for name, value in {
        "adapter": "vera",
        "adapter_kwargs": {"init_weights": False},
        "quantization": {"bits": 4},
    }.items():
        if name == "adapter_kwargs" and adapter == "lora":
            value = {"r": 4}
        with pytest.raises(ValueError, match=f"unfinished run with another {name}"):
            train_adapter(classifier(cut, model, data, **{**given, name: value}))
    # what is quantized stays so
    monkeypatch.setattr(calibrate, "quantize_model", None)
    train_adapter(classifier(cut, model, data, **given))
    names = ["adapter_model.safetensors", "eval_results.json", "base/config.json"]
    for name in [*names, *(["base/model.safetensors"] if adapter == "snnk" else [])]:
        assert (tmp_path / "whole" / name).read_bytes() == (cut / name).read_bytes()
    assert not (tmp_path / "cut.partial").exists()


def test_two_processes_started_from_a_file_equal_one(data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    given = {
        **QUICK,
        **data,
        # processes draw dropout of their own
        "model": str(masked_lm(tmp_path / "tiny", dropout=0.0)),
        "adapter": "snnk",
        "adapter_kwargs": {"num_features": 4},
        "quantization": BITS,
        "max_steps": 3,
        # plain gradient descent: Adam would turn rounding in a vanishing gradient into a full step
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 0.0,
    }
    recipe.write_text(json.dumps(given), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "trainers" / "accelerate" / "cpu_2.yaml")]
    for name, command, count in (("two", launch, 2), ("one", [sys.executable], 1)):
        words = ["--output_dir", str(tmp_path / name)]
        # of the 18 test rows none is seen twice, and none weighs more
        words += ["--per_device_train_batch_size", str(8 // count)]
        words += ["--per_device_eval_batch_size", str(18 // count)]
        done = subprocess.run(
            [*command, PROGRAM, str(recipe), *words],
            capture_output=True,
            text=True,
            timeout=500,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(f"saved in {tmp_path / name}") == 1
    bases = [tmp_path / name / "base" / "model.safetensors" for name in ("two", "one")]
    assert bases[0].read_bytes() == bases[1].read_bytes()
    two, one = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-6)
    scores = [
        json.loads((tmp_path / name / "eval_results.json").read_text("utf-8"))["scores"]
        for name in ("two", "one")
    ]
    # a quantized layer rounds few rows in another way
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapter": "snk"}, r"adapter='snk' is unknown. Did you mean 'snnk'"),
        ({"adapter": "adalora"}, "adapter='adalora' needs a call after every step"),
        ({"adapter_kwargs": {"num_feature": 8}}, r"snnk has no 'num_feature'.*'num_features'"),
        ({"adapter_kwargs": {"task_type": "CAUSAL_LM"}}, "'task_type' follows from the other"),
        ({"adapter_kwargs": {"kernel": "rbf"}}, "adapter='snnk'.*kernel='rbf'"),
        ({"adapter_kwargs": '{"r"'}, "adapter_kwargs=.* is not JSON"),
        ({"adapter_kwargs": {"target_modules": ["q_proj"]}}, "q_proj.*No modules were targeted"),
        (
            {"adapter_kwargs": {"target_modules": ["q_proj"]}, "quantization": BITS},
            "q_proj.*not found in the base model",
        ),
        ({"quantization": {"bit": 3}}, r"BaqConfig takes no 'bit' here. Did you mean 'bits'"),
        ({"quantization": {"bits": -1}}, "bits=-1"),
        ({"quantization": {"bits": 9}}, "bits"),
        ({"freeze_encoder": True}, "freeze_encoder=True would leave the head alone"),
        ({"task": "causal-lm"}, "task='causal-lm': these are the arguments of 'text-classif"),
        (
            {"adapter": "trainable_tokens", "adapter_kwargs": {"token_indices": [3]}},
            "'trainable_tokens' saves no module in full",
        ),
    ],
)
def test_mistakes(given, message, data, tmp_path):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        train_adapter(classifier(tmp_path / "out", masked_lm(tmp_path / "tiny"), data, **given))
    # before anything was written
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_mistakes_with_a_language_model(llama_folder, text, tmp_path):
    given = {"adapter": "prompt_tuning", "adapter_kwargs": {"num_virtual_tokens": 2}}
    with pytest.raises(ValueError, match="puts tokens before the text that have no labels"):
        train_adapter(language_model(tmp_path / "out", llama_folder, text, **given))
    scratch = language_model(tmp_path / "out", "", text, model_type="llama")
    with pytest.raises(ValueError, match="model is missing: an adapter goes into a checkpoint"):
        train_adapter(scratch)


def test_the_command_line(data, llama_folder, text, tmp_path, capsys):
    config = tmp_path / "adapter.yaml"
    config.write_text(f"task: causal-lm\nmodel: {llama_folder}\nlength: 16\nadapter: vera\n")
    words = [str(config), "--data", text, "--output_dir", "out", "--max_steps", "1"]
    words += ["--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no"]
    words += ["--adapter_kwargs", '{"r": 4}', "--test_factors", "1"]
    commands.adapter(words)
    assert capsys.readouterr().out.endswith("\nsaved in out\n")
    saved = json.loads(Path("out/adapter_config.json").read_text())
    assert (saved["peft_type"], saved["r"]) == ("VERA", 4)
    with pytest.raises(ValueError, match=r"unknown argument 'length'"):
        commands.adapter([str(config), "--task", "text-classification"])
    with pytest.raises(ValueError, match=r"task='causal_lm' is unknown. Did you mean 'causal-lm'"):
        commands.adapter(["--task", "causal_lm"])
    config.write_text("task: [causal-lm]\n")
    with pytest.raises(ValueError, match=r"task=\['causal-lm'\] is unknown"):
        commands.adapter([str(config)])


def test_help_begins_with_what_the_program_asks_for(capsys):
    for task, own in (("text-classification", "--text_column"), ("causal-lm", "--passkey_share")):
        with pytest.raises(SystemExit):
            commands.adapter(["--task", task, "--help"])
        shown = re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE)
        assert shown[:4] == ["--task", "--model", "--data", "--output_dir"]
        assert shown.index("--adapter") < shown.index(own) < shown.index("--max_steps")


def test_the_recipe_is_a_recipe(tmp_path):
    from hf_softext.training.adapter.arguments import parse_adapter_arguments

    args = parse_adapter_arguments([str(ROOT / "trainers" / "configs" / "adapter.yaml")])
    args.check()
    assert args.adapter_kwargs == {"num_features": 16}
