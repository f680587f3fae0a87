"""Processes that were launched together are one training, or none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_softext import AdoptionArguments
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.processes import check_joined
from hf_softext.training.quantize.arguments import QuantizeArguments
from tests.training.classifier.test_run import topics, write

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the default is to use it")
def test_without_an_accelerator_two_processes_join_by_themselves(bert_folder, tmp_path):
    config = tmp_path / "classifier.yaml"
    given = {"model": str(bert_folder), "data": write(tmp_path / "rows.jsonl", topics())}
    given |= {"num_train_epochs": 1, "per_device_train_batch_size": 9, "disable_tqdm": True}
    config.write_text(json.dumps(given), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "trainers" / "accelerate" / "cpu_2.yaml")]
    command += [str(ROOT / "trainers" / "train_classifier.py"), str(config)]
    command += ["--output_dir", str(tmp_path / "out")]
    left_out = ("ACCELERATE_USE_CPU", "WORLD_SIZE")
    environment = {name: one for name, one in os.environ.items() if name not in left_out}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved in") == 1
    facts = json.loads((tmp_path / "out" / "eval_results.json").read_text("utf-8"))
    # 81 rows in batches of 9 are 9 steps of one process
    assert (facts["batch"], facts["steps"]) == (18, 5)


def test_arguments_stay_on_the_cpu_where_several_processes_have_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert not parse_arguments(QuantizeArguments, []).use_cpu
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse_arguments(QuantizeArguments, []).use_cpu
    with pytest.raises(ValueError, match="use_cpu=False: there is no accelerator"):
        parse_arguments(QuantizeArguments, ["--use_cpu", "false"])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not parse_arguments(QuantizeArguments, []).use_cpu


def test_a_process_that_would_train_alone_is_refused(tmp_path, monkeypatch):
    args = AdoptionArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    check_joined(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were launched.*give use_cpu=True"):
        check_joined(args)
