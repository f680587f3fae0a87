"""Killed and started again, and with several processes: the same bits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.quantization.baq import calibrate
from hf_softext.quantization.baq.calibrate import quantize_model
from hf_softext.quantization.baq.config import BaqConfig
from tests.quantization.calibration_models import build, token_ids

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).parent / "calibrate_once.py")
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(ROOT / "trainers" / "accelerate" / "cpu_2.yaml"),
    # any free one, as other tests may run beside this
    "--main_process_port",
    "0",
]


def run(*words, launch=(sys.executable,)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return subprocess.run(
        [*launch, PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=environment,
    )


def quantized(model_name, work=None, **options):
    model = build(model_name)
    config = BaqConfig(**{"bits": 9.0, "refine": 1, **options})
    reports = quantize_model(model, config, work, token_ids())
    tensors = dict(model.state_dict())
    tensors["losses"] = torch.tensor([one.loss for one in reports], dtype=torch.float64)
    tensors["tokens"] = torch.tensor([one.tokens for one in reports])
    return tensors


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert "losses" in found
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


# in the first pass, at its end, in the second, and in the decoder's half of it
@pytest.mark.parametrize(
    ("name", "kill_at"),
    [
        ("llama", 1),
        pytest.param("llama", 3, marks=pytest.mark.slow),
        pytest.param("llama", 5, marks=pytest.mark.slow),
        ("t5", 8),
        pytest.param("gemma3n", 7, marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again_it_gives_the_same_bits(name, kill_at, tmp_path):
    work, out = tmp_path / "work", tmp_path / "out.safetensors"
    done = run(name, out, work, kill_at)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not out.exists()
    assert len(list(work.glob("*-*.safetensors"))) == kill_at
    assert_same(quantized(name, work), quantized(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_two_processes_give_the_bits_of_one(name, tmp_path):
    out = tmp_path / "two.safetensors"
    done = run(name, out, tmp_path / "work", launch=LAUNCH)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(out), quantized(name))


def test_two_processes_go_on_where_one_was_killed(tmp_path):
    work, out = tmp_path / "work", tmp_path / "out.safetensors"
    assert run("t5", out, work, 7).returncode == -signal.SIGKILL
    done = run("t5", out, work, launch=LAUNCH)
    assert done.returncode == 0, done.stderr[-3000:]
    # one bar
    assert done.stderr.count("running the 2 finished blocks:  55%") == 1
    assert_same(load_file(out), quantized("t5"))


def test_finished_run_is_only_read(tmp_path, monkeypatch):
    expected = quantized("t5", tmp_path)
    for name in ("measure", "solve"):
        monkeypatch.setattr(calibrate, name, None)
    assert_same(quantized("t5", tmp_path), expected)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("measured", "cut"), ("quantized", "cut"), ("quantized", "empty"), ("measured", "other")],
)
def test_damaged_blocks_are_done_again(kind, damage, tmp_path):
    expected = quantized("llama", tmp_path)
    path = tmp_path / f"{kind}-00001.safetensors"
    content = path.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "other": (tmp_path / f"{kind}-00002.safetensors").read_bytes(),
    }
    path.write_bytes(damaged[damage])
    assert_same(quantized("llama", tmp_path), expected)
    assert path.read_bytes() == content


def test_another_run_is_refused_and_named(tmp_path):
    quantized("llama", tmp_path)
    request = json.loads((tmp_path / "request.json").read_text("utf-8"))
    assert request["settings"]["bits"] == 9.0
    with pytest.raises(ValueError, match="holds an unfinished run with another settings"):
        quantized("llama", tmp_path, bits=8.9)
    with pytest.raises(ValueError, match="with another modules"):
        quantized("llama", tmp_path, modules_to_not_convert=["o_proj"])
    model = build("llama")
    with pytest.raises(ValueError, match="with another calibration"):
        quantize_model(model, BaqConfig(bits=9.0, refine=1), tmp_path, token_ids(4))
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    with pytest.raises(ValueError, match="with another weights"):
        quantize_model(model, BaqConfig(bits=9.0, refine=1), tmp_path, token_ids())


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds other files"):
        quantized("llama", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quantized("llama")
    assert list(tmp_path.iterdir()) == []
