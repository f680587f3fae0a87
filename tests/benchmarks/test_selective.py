"""The comparison of rules that admit predictions, on fewer rows."""

import csv
import random
import sys

import _selective_tasks as tasks
import pytest
import selective_classification as selective
import torch


@pytest.mark.filterwarnings("ignore::hf_softext.heads.sdm.diagnosis.EmptyRegionWarning")
def test_every_rule_is_measured_on_every_set(tmp_path, monkeypatch):
    whole = tasks.digits(0)
    fit = tasks.Part(whole.fit.x[:300], whole.fit.y[:300])
    tests = {
        name: tasks.Part(p.x[:90], None if p.y is None else p.y[:90])
        for name, p in whole.tests.items()
    }
    monkeypatch.setattr(selective, "load", lambda name, seed, data: tasks.Task(fit, tests))
    out = tmp_path / "found.csv"
    words = ["x", "--tasks", "digits", "--seeds", "0", "--splits", "1", "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out)])
    selective.main()
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["rule"] for row in rows}) >= 7
    assert len(rows) == len({row["rule"] for row in rows}) * len(tests)
    found = {(row["rule"], row["test"]): row for row in rows}
    # at random pixels nothing is right, so that there is no accuracy
    assert found["softmax", "uniform noise"]["accuracy"] == "nan"
    assert float(found["softmax", "test"]["accuracy"]) > 0.9
    gate = found["temperature + 1-NN gate", "uniform noise"]
    assert float(gate["admitted"]) < float(found["temperature", "uniform noise"]["admitted"]) + 1e-9
    assert float(gate["auroc"]) > 0.95
    # what is there is not run again
    monkeypatch.setattr(selective, "load", None)
    selective.main()
    assert "**digits**" in selective.report(out)


def test_shifts_and_halves():
    text = "please freeze my bank account"
    noised = [tasks.typos(text, random.Random(seed)) for seed in (1, 1, 2)]
    assert noised[0] == noised[1] != text
    assert noised[2] != noised[0]
    assert tasks.typos(text, random.Random(0), share=0.0) == text
    y = torch.arange(40) % 4
    one, other = tasks.halves(y, 0)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(40))
    assert y[one].bincount().tolist() == y[other].bincount().tolist() == [5, 5, 5, 5]
    tests = tasks.digits(1).tests
    turned = tests["turned by 90 degrees"].x.view(-1, 8, 8)
    torch.testing.assert_close(torch.rot90(turned, -1, (1, 2)).flatten(1), tests["test"].x)
