"""Training of a causal language model: exact under accumulation, in two processes and over an
interruption; honest in what it writes; clear in what it refuses."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file
from transformers.trainer_pt_utils import LabelSmoother

from hf_softext.training.causal_lm import run as causal_lm
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.extrapolation import loss_by_length
from hf_softext.training.causal_lm.run import train_causal_lm
from hf_softext.training.compute_loss_func import make_compute_loss_func
from hf_softext.training.softext_trainer import SoftextTrainer

ROOT = Path(__file__).parents[3]
PROGRAM = str(ROOT / "trainers" / "train_causal_lm.py")
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "dropout": 0.0,
}
QUICK = {
    "model_type": "llama",
    "config_overrides": json.dumps(LLAMA),
    "length": 40,
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "test_factors": [1, 3],
    "test_tokens": 500,
    "passkey_samples": 2,
    "passkey_depths": [0.0, 1.0],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def text(tmp_path):
    choose = random.Random(0)
    words = ["the", "king", "and", "queen", "of", "night", "sing", "well"]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(choose.choices(words, k=1500)), encoding="utf-8")
    return path


def arguments(out, text, **given):
    return CausalLMArguments(output_dir=str(out), **{**QUICK, "data": str(text), **given})


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance)


@pytest.mark.parametrize(
    ("model_type", "overrides", "attention", "parameters"),
    [
        ("llama", LLAMA, "softplus_reweighted", {"power": 3}),
        ("opt", OPT, "stablemax", {}),
        ("opt", OPT, None, {}),
    ],
)
def test_what_is_written_is_what_was_measured(
    model_type, overrides, attention, parameters, text, tmp_path
):
    out = tmp_path / "out"
    result = train_causal_lm(
        arguments(
            out,
            text,
            model_type=model_type,
            config_overrides=overrides,
            attention=attention,
            attention_parameters=parameters,
            max_steps=30,
            learning_rate=5e-3,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=30,
        )
    )
    assert result.folder == out
    assert not out.with_name("out.partial").exists()
    logged = [line["loss"] for line in result.log if "loss" in line]
    assert logged[-1] < 0.8 * logged[0]
    # the Trainer's own evaluation sees the same held-out text
    evaluated = [line["eval_loss"] for line in result.log if "eval_loss" in line]
    assert evaluated == pytest.approx([result.losses[40]], abs=1e-4)

    model = hf.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    assert model.config._attn_implementation == (attention or "sdpa")
    assert model.config.use_cache is True
    assert model.config.eos_token_id == 256
    if parameters:
        assert model.config.softext["power"] == 3
    content = text.read_bytes()
    held_out = torch.tensor([*content, 256])[-int(0.1 * (len(content) + 1)) :]
    again = loss_by_length(model, held_out, [40, 120], amount=500)
    assert again == pytest.approx(result.losses, abs=1e-6)

    written = json.loads((out / "eval_results.json").read_text(encoding="utf-8"))
    assert {row["length"]: row["loss"] for row in written["losses"]} == result.losses
    assert [(row["length"], row["depth"]) for row in written["passkeys"]] == [
        (40, 0.0),
        (40, 1.0),
        (120, 0.0),
        (120, 1.0),
    ]
    assert written["held_out_tokens"] == len(held_out)
    assert written["train_tokens"] == len(content) + 1 - len(held_out)
    assert written["parameters"] == model.num_parameters()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{result.losses[120]:.4f}" in card
    code = card.split("---")[2].strip()
    first = "import hf_softext" if attention else "from transformers import"
    assert code.startswith("```python\n" + first)
    assert not (out / "training_args.bin").exists()
    written_text = tokenizer.decode(
        model.generate(**tokenizer("the king", return_tensors="pt"), max_new_tokens=5)[0]
    )
    assert written_text.startswith("the king")


def test_the_card_of_a_model_with_another_loss_says_how_to_sample(text, tmp_path):
    out = tmp_path / "out"
    train_causal_lm(arguments(out, text, loss="stablemax_ce", max_steps=1))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "trained with the loss `stablemax_ce`" in card
    assert "`hf_softext.stablemax_decoding(model)`" in card


def test_a_checkpoint_is_trained_further_with_its_own_tokenizer_and_dtype(
    llama_folder, texts, tmp_path
):
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder).to(torch.bfloat16)
    model.save_pretrained(llama_folder)
    out = tmp_path / "out"
    given = {"model_type": None, "config_overrides": "{}", "model": str(llama_folder), "length": 16}
    with pytest.warns(UserWarning, match="'softplus' replaces the attention"):
        result = train_causal_lm(arguments(out, texts, attention="softplus", **given))
    # its words tell no digits apart, so there is no passkey to look for
    assert result.passkeys == []
    assert all(value.dtype == torch.bfloat16 for value in weights(out).values())
    before = weights(llama_folder)
    assert any(not torch.equal(value, before[name]) for name, value in weights(out).items())
    assert hf.AutoModelForCausalLM.from_pretrained(out).config._attn_implementation == "softplus"
    assert hf.AutoTokenizer.from_pretrained(out)("w3")["input_ids"] == [5]
    with pytest.raises(ValueError, match=r"passkey_share=0.5 needs a tokenizer that tells digits"):
        train_causal_lm(arguments(tmp_path / "no", texts, passkey_share=0.5, **given))
    with pytest.raises(ValueError, match=r"tokenizer='bytes' has 257 tokens and model=.* only 42"):
        train_causal_lm(arguments(tmp_path / "no", texts, tokenizer="bytes", **given))


def test_a_config_file_is_trained_from_scratch_and_derived_sizes_follow(
    llama_folder, text, tmp_path
):
    given = {"model_type": None, "config": str(llama_folder)}
    with pytest.raises(ValueError, match=r"vocab_size=42 is below the tokenizer's 257"):
        train_causal_lm(arguments(tmp_path / "out", text, config_overrides="{}", **given))
    overrides = {"vocab_size": 320, "hidden_size": 16, "num_key_value_heads": 4, "head_dim": 4}
    train_causal_lm(arguments(tmp_path / "out", text, config_overrides=overrides, **given))
    config = hf.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.vocab_size, config.hidden_size, config.head_dim) == (320, 16, 4)
    assert config.intermediate_size == 48


def test_accumulation_equals_one_batch_also_with_unequal_label_counts(text, tmp_path):
    # plain gradient descent: Adam would turn rounding in a vanishing gradient into a full step
    given = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "passkey_share": 0.5}
    for batch, accumulation in ((8, 1), (4, 2)):
        out = tmp_path / f"{batch}x{accumulation}"
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        train_causal_lm(arguments(out, text, **given, **sizes))
    whole, parts = weights(tmp_path / "8x1"), weights(tmp_path / "4x2")
    assert_same(whole, parts, rtol=1e-4, atol=2e-6)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_interrupted_run_continues_to_the_same_weights(text, tmp_path, monkeypatch):
    given = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "passkey_share": 0.3}
    # a schedule that would let a step too many show
    given |= {"attention": "softplus", "lr_scheduler_type": "constant_with_warmup"}
    train_causal_lm(arguments(tmp_path / "whole", text, **given))
    calls = []
    step = SoftextTrainer.compute_loss

    def stop_at_the_sixth(*args, **kwargs):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SoftextTrainer, "compute_loss", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            train_causal_lm(arguments(tmp_path / "cut", text, **given))
    assert not (tmp_path / "cut").exists()
    assert [path.name for path in (tmp_path / "cut.partial").glob("checkpoint-*")] == [
        "checkpoint-3"
    ]
    other = {"learning_rate": 1.0, "max_grad_norm": 3.0, "seed": 1}
    with pytest.raises(ValueError, match="with another learning_rate, max_grad_norm, seed"):
        train_causal_lm(arguments(tmp_path / "cut", text, **given, **other))
    # and once more, after the last step
    with monkeypatch.context() as patch:
        patch.setattr(causal_lm, "loss_by_length", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_causal_lm(arguments(tmp_path / "cut", text, **given))
    train_causal_lm(arguments(tmp_path / "cut", text, **given))
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "cut"), rtol=0, atol=0)
    whole, cut = (tmp_path / name / "eval_results.json" for name in ("whole", "cut"))
    assert whole.read_text("utf-8") == cut.read_text("utf-8")
    assert not (tmp_path / "cut.partial").exists()


def test_two_processes_started_from_a_file_equal_one(text, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                **QUICK,
                "config_overrides": LLAMA,
                "attention": "softplus_reweighted",
                "attention_parameters": {"power": 3},
                "data": str(text),
                "passkey_share": 0.5,
                "optim": "sgd",
                "learning_rate": 0.5,
                "max_grad_norm": 0.0,
                # an odd number of test windows, so that the processes get unequal shares
                "test_tokens": 360,
                "passkey_samples": 3,
                "passkey_depths": [0.5],
            }
        ),
        encoding="utf-8",
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "trainers" / "accelerate" / "cpu_2.yaml")]
    # a free one, as others may test at the same time
    launch += ["--main_process_port", "0"]
    runs = {"two": ([*launch, PROGRAM], "4"), "one": ([sys.executable, PROGRAM], "8")}
    found = {}
    for name, (command, batch) in runs.items():
        words = ["--output_dir", str(tmp_path / name), "--per_device_train_batch_size", batch]
        done = subprocess.run(
            [*command, str(recipe), *words],
            capture_output=True,
            text=True,
            timeout=500,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(f"saved in {tmp_path / name}") == 1
        found[name] = json.loads((tmp_path / name / "eval_results.json").read_text("utf-8"))
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=2e-6)
    losses = [[row["loss"] for row in found[name]["losses"]] for name in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert found["two"]["passkeys"] == found["one"]["passkeys"]
    assert found["two"]["windows_in_a_step"] == found["one"]["windows_in_a_step"] == 8


def test_program_explains_its_arguments():
    done = subprocess.run(
        [sys.executable, PROGRAM, "--help"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name in ("--passkey_share", "--attention_parameters", "--learning_rate"):
        assert name in done.stdout


def test_half_precision_flag_trains_and_saves_full_precision(text, tmp_path):
    result = train_causal_lm(arguments(tmp_path / "out", text, bf16=True, max_steps=20))
    full = train_causal_lm(arguments(tmp_path / "full", text, max_steps=20))
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "out").values())
    assert result.losses[40] == pytest.approx(full.losses[40], abs=0.05)
    assert result.losses[40] != full.losses[40]


def test_lengths_without_text_or_positions_are_left_out_and_said(text, tmp_path):
    overrides = json.dumps({**OPT, "max_position_embeddings": 100})
    given = {"model_type": "opt", "config_overrides": overrides, "test_factors": [1, 2, 3, 50]}
    with pytest.warns(UserWarning, match=r"not tested at \[120, 2000\].*the model has 100 pos"):
        result = train_causal_lm(arguments(tmp_path / "out", text, **given))
    assert list(result.losses) == [40, 80]
    with pytest.raises(ValueError, match="length=101 is above the 100 positions"):
        train_causal_lm(arguments(tmp_path / "no", text, **{**given, "length": 101}))


def test_loss_is_shifted_and_divided_also_where_the_model_does_neither():
    config = hf.BartConfig(
        vocab_size=20,
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        is_decoder=True,
        is_encoder_decoder=False,
    )
    model = hf.BartForCausalLM(config).eval()
    ids = torch.randint(4, 20, (3, 7))
    labels = ids.clone()
    labels[0, 2:5] = -100
    outputs = model(ids)
    logits, targets = outputs.logits[:, :-1].reshape(-1, 20), labels[:, 1:].flatten()
    mean = F.cross_entropy(logits, targets)
    loss = make_compute_loss_func("ce", model)
    torch.testing.assert_close(loss(outputs, labels), mean)
    torch.testing.assert_close(loss(outputs, labels, num_items_in_batch=30), mean * 15 / 30)
    assert loss(outputs, torch.full_like(ids, -100)) == 0
    smooth = LabelSmoother(epsilon=0.1)(outputs, labels, shift_labels=True)
    smoothed = make_compute_loss_func("ce", model, label_smoothing=0.1)
    torch.testing.assert_close(smoothed(outputs, labels), smooth)
