"""Quantizing from start to end: what is written is what was measured; killed, in two processes and
under wrong arguments."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
import transformers as hf

from hf_softext.data.texts import read_corpus
from hf_softext.quantization.baq import calibrate
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.options import OPTIONS
from hf_softext.quantization.baq.size import file_bytes, size_report
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.causal_lm.extrapolation import loss_by_length
from hf_softext.training.pretrained import Source
from hf_softext.training.quantize.arguments import QuantizeArguments
from hf_softext.training.quantize.quality import hold_out
from hf_softext.training.quantize.run import quantize
from tests.training.conftest import save_model

ROOT = Path(__file__).parents[3]
PROGRAM = str(ROOT / "trainers" / "quantize.py")
QUICK = {"bits": 4.0, "nsamples": 6, "seqlen": 24, "test_nsamples": 8, "use_cpu": True}


def arguments(out, model, data, **given):
    given = {**QUICK, "data": None if data is None else str(data), **given}
    return QuantizeArguments(output_dir=str(out), model=str(model), **given)


def words(out, model, data, **given):
    given = {"model": model, "out": out, "data": data, **QUICK, **given}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def contents(folder):
    names = ("model.safetensors", "config.json", "quantization_results.json", "README.md")
    return {name: (folder / name).read_bytes() for name in names}


def test_every_argument_of_the_config_is_one_of_the_program():
    signature = inspect.signature(BaqConfig).parameters
    run_only = {"dataset", "tokenizer", "work_dir", "stored"}
    assert set(OPTIONS) == set(signature) - run_only
    given = QuantizeArguments()
    for name in OPTIONS:
        default = signature[name].default
        assert getattr(given, name) == (list(default) if name == "bit_range" else default), name
    assert given.config() == BaqConfig()
    for field in fields(QuantizeArguments):
        assert field.metadata["help"], field.name
        assert field.default is not MISSING or field.default_factory is not MISSING


@pytest.mark.parametrize("solver", ["gptq", "rtn"])
def test_what_is_written_is_what_was_measured(solver, llama_folder, texts, tmp_path):
    out = tmp_path / "tiny-4"
    result = quantize(arguments(out, llama_folder, texts, solver=solver))
    assert result.folder == out
    assert not out.with_name("tiny-4.partial").exists()
    model = hf.AutoModelForCausalLM.from_pretrained(out)
    size = size_report(model)
    assert 3.9 < size.bits <= 4.0
    found = json.loads((out / "quantization_results.json").read_text("utf-8"))
    assert found["true_bits"] == result.size.bits == size.bits
    assert {one["name"] for one in found["modules"]} == {one.name for one in size.modules}
    assert len(size.modules) == 14
    assert found["bytes"] == size.bytes == file_bytes(out)[0]
    assert [one["method"] for one in found["measured"]] == ["original", "baq"]

    # measured once more, by hand: the last tenth of the lines is held out
    plain = hf.AutoModelForCausalLM.from_pretrained(llama_folder)
    assert found["measured"][0]["bytes"] == file_bytes(llama_folder)[0]
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    text = read_corpus(str(texts), "text")["text"][0]
    start = text.rfind(" ", 0, round(0.9 * len(text)))
    start = max(start, text.rfind("\n", 0, round(0.9 * len(text)))) + 1
    ids = torch.tensor(tokenizer(text[start:])["input_ids"])
    ids = ids[: len(ids) // 24 * 24]
    assert len(ids) // 24 >= 3
    for point, one in zip(result.points, (plain, model), strict=True):
        loss = loss_by_length(one, ids, [24])[24]
        assert point.quality["loss"] == pytest.approx(loss, abs=1e-5)
        assert point.quality["tokens"] == len(ids)
    before, after = (f"{point.quality['perplexity']:.4f}" for point in result.points)
    lines = result.summary().splitlines()
    assert f"{before} before, {after} after" in lines[2]
    assert lines[-1] == f"saved in {out}"
    card = (out / "README.md").read_text("utf-8")
    assert 'from_pretrained("tiny-4")' in card
    assert f"{size.bits:.4f}" in card


def tiny(name, **config):
    return getattr(hf, name)._from_config(getattr(hf, config.pop("kind"))(**config))


ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
BERT = {**ENCODER, "kind": "BertConfig", "vocab_size": 42, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
        (
            "T5ForConditionalGeneration",
            {
                "kind": "T5Config",
                "d_model": 32,
                "d_kv": 8,
                "d_ff": 48,
                "num_layers": 1,
                "num_heads": 4,
            }
            | {"vocab_size": 42, "decoder_start_token_id": 0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_models_keep_their_class_and_are_compared_by_their_states(
    name, config, texts, tmp_path
):
    source = save_model(tiny(name, **config), tmp_path / "model")
    cosines = []
    for bits in (3.5, 6):
        out = tmp_path / f"out-{bits}"
        result = quantize(arguments(out, source, texts, bits=bits, nsamples=12))
        assert type(getattr(hf, name).from_pretrained(out)).__name__ == name
        assert result.points[0].quality["cosine"] == pytest.approx(1, abs=1e-6)
        cosines.append(result.points[1].quality["cosine"])
    assert 0.5 < cosines[0] < cosines[1] < 1
    assert cosines[1] > 0.98
    assert f"{cosines[1]:.4f}" in result.summary()


def test_without_text_nothing_is_measured_and_images_are_fine(tmp_path):
    config = {**ENCODER, "kind": "ViTConfig", "image_size": 8, "patch_size": 4}
    tiny("ViTModel", **config).save_pretrained(tmp_path / "vit")
    result = quantize(arguments(tmp_path / "out", tmp_path / "vit", None, solver="rtn"))
    assert [point.quality for point in result.points] == [{}, {}]
    model = hf.AutoModel.from_pretrained(tmp_path / "out")
    assert any(isinstance(module, BaqLinear) for module in model.modules())
    assert "held-out" not in result.summary()


def test_stored_dtype_stays_and_attention_can_be_chosen(llama_folder, texts, tmp_path):
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16)
    source = tmp_path / "half"
    model.save_pretrained(source)
    given = {"tokenizer": str(llama_folder), "attention": "softplus", "attention_parameters": "{}"}
    with pytest.warns(UserWarning, match="softplus"):
        result = quantize(arguments(tmp_path / "out", source, texts, **given))
    config = hf.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.dtype == torch.bfloat16
    assert config._attn_implementation == "softplus"
    assert result.points[0].bits == 16
    assert result.points[0].bytes == file_bytes(source)[0]


def stop_after(count, monkeypatch, where, name):
    calls, function = [], getattr(where, name)

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) > count:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(where, name, counted)
    return calls


def test_run_that_broke_off_anywhere_continues_to_the_same_file(
    llama_folder, texts, tmp_path, monkeypatch
):
    quantize(arguments(tmp_path / "whole" / "out", llama_folder, texts))
    cut = tmp_path / "cut" / "out"
    args = arguments(cut, llama_folder, texts)
    for count in (0, 9):
        with monkeypatch.context() as patch:
            stop_after(count, patch, calibrate, "solve")
            with pytest.raises(KeyboardInterrupt):
                quantize(args)
        assert not cut.exists()
    with pytest.raises(ValueError, match=r"unfinished run with another bits, seed"):
        quantize(arguments(cut, llama_folder, texts, bits=5, seed=1))
    # the second block is left to solve, seven of its weights
    with monkeypatch.context() as patch:
        calls, told = stop_after(7, patch, calibrate, "solve"), []
        quantize(args, told.append)
    assert (len(calls), told[0]) == (7, f"{cut}.partial continues")
    assert contents(tmp_path / "whole" / "out") == contents(cut)
    assert not cut.with_name("out.partial").exists()


def test_report_compares_and_resumes_point_by_point(llama_folder, texts, tmp_path, monkeypatch):
    given = {"report": True, "report_bits": [4.0, 3.5], "nsamples": 3}
    lines = []
    whole = tmp_path / "whole" / "out"
    result = quantize(arguments(whole, llama_folder, texts, **given), lines.append)
    wanted = ["[1/4] baq, 3.5", "[2/4] baq, 4", "[3/4] gptq, 4", "[4/4] rtn, 4"]
    assert lines.pop(0) == "measuring the original on the held-out text"
    assert [line.split(" bits")[0] for line in lines] == wanted
    # baq at 4 bits is this very model
    kinds = [(point.method, point.asked) for point in result.points]
    assert kinds == [("original", 32), ("baq", 4), ("baq", 3.5), ("gptq", 4), ("rtn", 4)]
    assert result.summary().splitlines()[-1] == f"report in {whole / 'report.html'}"
    page = (whole / "report.html").read_text("utf-8")
    assert all(f"{point.quality['perplexity']:.4f}" in page for point in result.points)

    cut, loads = tmp_path / "cut" / "out", []
    args = arguments(cut, llama_folder, texts, **given)
    with monkeypatch.context() as patch:
        # the original, this model, and one more
        stop_after(3, patch, Source, "load")
        with pytest.raises(KeyboardInterrupt):
            quantize(args)
    assert not cut.exists()
    with monkeypatch.context() as patch:
        loads = stop_after(9, patch, Source, "load")
        quantize(args)
    # this model, from its blocks, and the two points that were missing
    assert len(loads) == 3
    assert contents(whole) == contents(cut)
    assert (cut / "report.html").read_bytes() == (whole / "report.html").read_bytes()


def test_killed_program_continues_to_the_same_file(llama_folder, texts, tmp_path):
    flags = words(tmp_path / "cut" / "out", llama_folder, texts, seqlen=32)
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    work = tmp_path / "cut" / "out.partial"
    deadline = time.time() + 200
    while not list(work.glob("blocks/measured-*.safetensors")) and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "out").exists()
    assert list(work.glob("blocks/*.safetensors"))
    quantize(parse_arguments(QuantizeArguments, flags))
    quantize(arguments(tmp_path / "whole" / "out", llama_folder, texts, seqlen=32))
    assert contents(tmp_path / "cut" / "out") == contents(tmp_path / "whole" / "out")


def test_two_processes_started_from_a_file_write_once_what_one_writes(
    llama_folder, texts, tmp_path
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**QUICK, "bit_range": [1, 8]}), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "trainers" / "accelerate" / "cpu_2.yaml")]
    # a free one, as others may test at the same time
    launch += ["--main_process_port", "0"]
    out = tmp_path / "two" / "out"
    given = ["--model", str(llama_folder), "--data", str(texts), "--out", str(out)]
    done = subprocess.run(
        [*launch, PROGRAM, str(recipe), *given],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        # threads of two processes would be in each other's way
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"saved in {out}") == 1
    quantize(arguments(tmp_path / "one" / "out", llama_folder, texts))
    assert contents(out) == contents(tmp_path / "one" / "out")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": ""}, ValueError, "model is missing"),
        ({"output_dir": ""}, ValueError, "output_dir is missing"),
        ({"data": None}, ValueError, "data is missing: solver='gptq'"),
        ({"data": "missing.txt"}, FileNotFoundError, "data='missing.txt'"),
        ({"bits": 0.5}, ValueError, "bits=0.5 cannot be reached"),
        ({"bits": -1.0}, ValueError, "bits=-1.0"),
        ({"bit_range": [3]}, ValueError, "bit_range=[3]"),
        ({"allocation": "modell"}, ValueError, "allocation='modell'"),
        ({"dtype": "int8"}, ValueError, "dtype='int8'"),
        ({"held_out": 1.0}, ValueError, "held_out=1.0"),
        ({"held_out": 1e-9}, ValueError, "leaves none held out"),
        ({"test_nsamples": 0}, ValueError, "test_nsamples=0"),
        ({"attention": "softplux"}, ValueError, "Did you mean 'softplus'"),
        ({"report": True, "held_out": 0.0}, ValueError, "held_out above 0"),
        ({"report": True, "report_bits": [0.2]}, ValueError, "bits=0.2 cannot be reached"),
        ({"modules_to_not_convert": ["model.layers"]}, ValueError, "nothing to quantize"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_named_before_anything_is_written(
    given, error, message, llama_folder, texts, tmp_path
):
    right = {"out": tmp_path / "out", "model": llama_folder, "data": texts}
    args = arguments(**right)
    for name, value in given.items():
        setattr(args, name, value)
    with pytest.raises(error) as raised:
        quantize(args)
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_output_that_exists_and_quantized_sources_are_refused(llama_folder, texts, tmp_path):
    out = tmp_path / "out"
    quantize(arguments(out, llama_folder, None, solver="rtn"))
    with pytest.raises(FileExistsError, match="output_dir="):
        quantize(arguments(out, llama_folder, texts))
    with pytest.raises(ValueError, match=r"quantized already, by baq: softext export"):
        quantize(arguments(tmp_path / "again", out, texts))


@pytest.mark.parametrize(
    ("line", "message"),
    [("bitz: 3", "unknown argument 'bitz'. Did you mean 'bits'"), ("", "not a mapping")],
)
def test_wrong_files_are_named(line, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        parse_arguments(QuantizeArguments, [str(path)])


def test_recipe_of_the_repository_and_flags_are_understood(tmp_path):
    recipe = str(ROOT / "trainers" / "configs" / "quantize.yaml")
    args = parse_arguments(QuantizeArguments, [recipe, "--bits", "2", "--no_clip", "--out", "x"])
    assert (args.bits, args.clip, args.output_dir, args.nsamples) == (2.0, False, "x", None)
    args.check()
    with pytest.raises(
        ValueError, match=r"unknown argument '--bit-rnge'. Did you mean 'bit_range'"
    ):
        parse_arguments(QuantizeArguments, ["--bit-rnge", "1", "8"])


def test_the_last_share_of_the_text_is_held_out():
    texts = ["aaaa bbbb", "cccc dddd", "ee"]
    assert hold_out(texts, 0.0, cut=True) == (texts, [])
    assert hold_out(texts, 0.1, cut=False) == (texts[:2], texts[2:])
    assert hold_out(texts, 0.3, cut=True) == (["aaaa bbbb", "cccc "], ["dddd", "ee"])
    # a text that is not to be cut stays with those before the border
    assert hold_out(texts, 0.3, cut=False) == (texts[:2], texts[2:])
    assert hold_out(["x" * 10], 0.2, cut=True) == (["x" * 8], ["xx"])
    with pytest.raises(ValueError, match="leaves none held out"):
        hold_out(["one text"], 0.1, cut=False)
