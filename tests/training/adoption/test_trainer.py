"""Adoption: it learns, it is exact under accumulation and in two processes, it survives being
killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers as hf
from datasets import Dataset
from safetensors.torch import load_file

from hf_softext import AdoptionArguments, AdoptionTrainer, adopt, apply_attention
from hf_softext.attention.softplus import SOFTPLUS_REWEIGHTED
from hf_softext.training.adoption.loss import adoption_loss, layer_centers
from hf_softext.training.adoption.trainer import EaseIn
from hf_softext.training.checkpoints import last_complete_checkpoint

ROOT = Path(__file__).parents[3]
QUICK = {
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "save_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}

# enough for models of two layers and width 32
LEARN = {"max_steps": 150, "learning_rate": 5e-3, "save_strategy": "no"}


def arguments(out, **given):
    return AdoptionArguments(output_dir=str(out), **{**QUICK, **given})


@pytest.mark.parametrize(
    "name", ["softplus", "softplus_reweighted", "stablemax", "soft", "soft_norm"]
)
def test_encoder_comes_closer_and_loads_without_naming_its_attention(
    name, bert_folder, texts, tmp_path
):
    out = tmp_path / "out"
    result = adopt(arguments(out, model=str(bert_folder), attention=name, data=str(texts), **LEARN))
    assert result.before < 0.9999
    assert 1 - result.after < 0.5 * (1 - result.before)
    model = hf.AutoModel.from_pretrained(result.folder)
    assert model.config._attn_implementation == name
    assert not out.with_name("out.partial").exists()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.split("---")[2].strip().startswith("```python\nimport hf_softext")
    assert name in card


def test_language_model_matches_logits_and_keeps_its_cache_setting(llama_folder, texts, tmp_path):
    out = tmp_path / "out"
    given = {"model": str(llama_folder), "attention": "softplus_reweighted", "data": str(texts)}
    adopt(arguments(out, parameters='{"power": 3}', **LEARN, **given))
    model = hf.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.use_cache is True
    assert model.config.softext["power"] == 3
    assert model.config.softext["shift"] == 1.0
    swapped = apply_quietly(hf.AutoModelForCausalLM.from_pretrained(llama_folder), power=3)
    teacher = hf.AutoModelForCausalLM.from_pretrained(llama_folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(llama_folder)
    inputs = tokenizer(
        texts.read_text(encoding="utf-8").split("\n")[:40], return_tensors="pt", padding=True
    )
    inputs.pop("token_type_ids", None)
    losses = []
    for student in (swapped, model):
        with torch.no_grad():
            outputs = [m.eval()(**inputs, output_hidden_states=True) for m in (student, teacher)]
        total, items = adoption_loss(*outputs, inputs, layer_centers(outputs[1], inputs))
        losses.append((total / items).item())
    assert losses[1] < 0.5 * losses[0]


def apply_quietly(model, **parameters):
    model.config.name_or_path = ""
    return apply_attention(model, "softplus_reweighted", **parameters)


def gradients(bert_folder, tmp_path, batch, accumulation):
    student = hf.AutoModel.from_pretrained(bert_folder)
    student.config.name_or_path = ""
    apply_attention(student, "stablemax")
    rows = Dataset.from_list(
        [
            {"input_ids": row, "attention_mask": [1] * len(row)}
            for row in ([list(range(2, 2 + length)) for length in (3, 9, 4, 17, 5, 6, 12, 8)])
        ]
    )
    tokenizer = hf.AutoTokenizer.from_pretrained(bert_folder)
    found = {}

    class Keep(hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found.update(
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            )

    AdoptionTrainer(
        model=student,
        teacher=hf.AutoModel.from_pretrained(bert_folder),
        args=arguments(
            tmp_path / f"{batch}x{accumulation}",
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
            save_strategy="no",
        ),
        train_dataset=rows,
        data_collator=hf.DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[Keep()],
    ).train()
    return found


def test_accumulated_gradients_equal_those_of_one_batch(bert_folder, tmp_path):
    whole = gradients(bert_folder, tmp_path, 8, 1)
    parts = gradients(bert_folder, tmp_path, 2, 4)
    assert len(whole) > 20
    assert any(gradient.abs().max() > 1e-4 for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_two_processes_equal_one(bert_folder, texts, tmp_path):
    common = [
        "--model",
        str(bert_folder),
        "--attention",
        "softplus",
        "--data",
        str(texts),
        "--max_steps",
        "3",
    ]
    common += [
        "--train_sampling_strategy",
        "sequential",
        "--use_cpu",
        "true",
        "--save_strategy",
        "no",
    ]
    # plain gradient descent: Adam would turn rounding in a vanishing gradient into a full step
    common += ["--optim", "sgd", "--learning_rate", "0.1", "--max_grad_norm", "0"]
    program = str(ROOT / "trainers" / "adopt_attention.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    # a free one, as others may test at the same time
    launch += ["--main_process_port", "0"]
    two = [*launch, "--config_file", str(ROOT / "trainers/accelerate/cpu_2.yaml"), program, *common]
    one = [sys.executable, program, *common]
    runs = {"two": (two, "4"), "one": (one, "8")}
    for name, (command, batch) in runs.items():
        command += ["--output_dir", str(tmp_path / name), "--per_device_train_batch_size", batch]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in runs]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=2e-5)


def test_killed_run_continues_to_the_same_weights(bert_folder, texts, tmp_path):
    def command(out):
        given = {
            "model": bert_folder,
            "attention": "softplus_reweighted",
            "data": texts,
            "output_dir": out,
        }
        given |= {
            "max_steps": 60,
            "save_steps": 5,
            "per_device_train_batch_size": 8,
            "use_cpu": "true",
        }
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return [sys.executable, str(ROOT / "trainers" / "adopt_attention.py"), *flags]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(
        command(tmp_path / "cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    work = tmp_path / "cut.partial"
    deadline = time.time() + 200
    while not list(work.glob("checkpoint-*/trainer_state.json")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    assert work.exists()
    # a checkpoint that was being written when the end came
    (work / "checkpoint-999").mkdir()
    (work / "checkpoint-999" / "trainer_state.json").write_text('{"global_st', encoding="utf-8")
    subprocess.run(command(tmp_path / "cut"), check=True, capture_output=True, timeout=300)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert not work.exists()


def test_last_complete_checkpoint_skips_and_removes_half_written_ones(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global'), (15, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_easing_in_starts_at_softplus_and_ends_at_the_target(bert_folder):
    model = hf.AutoModel.from_pretrained(bert_folder)
    model.set_attn_implementation("softplus_reweighted")
    target = SOFTPLUS_REWEIGHTED.resolve({"power": 9})
    ease = EaseIn(SOFTPLUS_REWEIGHTED, target, share=0.5)
    state = hf.TrainerState(max_steps=8)
    powers = []
    for state.global_step in range(8):
        ease.on_step_begin(None, state, None, model=model)
        powers.append((model.config.softext["power"], model.config.softext["shift"]))
    assert powers == [(1, 0), (3, 0.25), (5, 0.5), (7, 0.75), (9, 1), (9, 1), (9, 1), (9, 1)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"attention": "softplux"}, ValueError, "Did you mean 'softplus'"),
        ({"parameters": '{"powr": 3}'}, ValueError, "no parameter 'powr'"),
        ({"parameters": "power=3"}, ValueError, "not JSON"),
        ({"parameters": "[3]"}, ValueError, "JSON object"),
        ({"data": "missing.txt"}, FileNotFoundError, "data='missing.txt'"),
        ({"data": None}, ValueError, "data is missing"),
        ({"model": None}, ValueError, "model is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments_are_named(given, error, message, bert_folder, texts, tmp_path):
    right = {"model": str(bert_folder), "attention": "softplus_reweighted", "data": str(texts)}
    with pytest.raises(error, match=message.replace("(", r"\(")):
        adopt(arguments(tmp_path / "out", **{**right, **given}))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_existing_output_and_foreign_partial_run_are_left_alone(bert_folder, texts, tmp_path):
    given = {"model": str(bert_folder), "attention": "softplus", "data": str(texts)}
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="output_dir="):
        adopt(arguments(tmp_path / "out", **given))
    work = tmp_path / "new.partial"
    work.mkdir()
    (work / "request.json").write_text(json.dumps({"model": "another"}), encoding="utf-8")
    (work / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"unfinished run with another model, attention"):
        adopt(arguments(tmp_path / "new", **given))
    assert {path.name for path in work.iterdir()} == {"request.json", "model.safetensors"}


def test_tables_are_read_and_empty_text_is_refused(bert_folder, tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text('{"query": "w1 w2 w3"}\n{"query": "w4 w5"}\n{"query": ""}\n', encoding="utf-8")
    given = {
        "model": str(bert_folder),
        "attention": "stablemax",
        "data": str(table),
        "max_steps": 1,
    }
    with pytest.raises(ValueError, match=r"column='text' is not in rows.jsonl, which has query"):
        adopt(arguments(tmp_path / "out", **given))
    adopt(arguments(tmp_path / "out", column="query", **given))
    blank = tmp_path / "blank.txt"
    blank.write_text("\n  \n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no text"):
        adopt(arguments(tmp_path / "none", **{**given, "data": str(blank)}))


def test_teacher_must_be_another_model(bert_folder, tmp_path):
    model = hf.AutoModel.from_pretrained(bert_folder)
    with pytest.raises(ValueError, match="same object"):
        AdoptionTrainer(model=model, teacher=model, args=arguments(tmp_path))
