"""The benchmark compares what computes the same, and its report shows what was measured."""

import argparse

import losses
import pytest
import torch

SMALL = argparse.Namespace(
    device="cpu", dtype="float32", tokens=24, width=8, vocabulary=40, rounds=2
)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_has_its_peers(name, capsys, monkeypatch):
    # so little memory may not show
    monkeypatch.setattr(losses, "peak_extra_mib", lambda run, device: run() or 1.0)
    rows = losses.measure(name, SMALL)
    kinds = [row["implementation"] for row in rows]
    extra = {"ce": [losses.TORCH], "spherical_z": [losses.GRAM]}.get(name, [])
    assert kinds == [losses.NAIVE, losses.IN_PLACE, losses.CHUNKS, *extra]
    assert rows[0]["time_to_naive"] == "1.000"
    assert rows[0]["memory_to_naive"] == "1.0000"
    assert [row["rounds"] for row in rows] == [1 if k in losses.ONCE else 2 for k in kinds]
    assert name in capsys.readouterr().out


def test_implementations_that_disagree_are_no_comparison(monkeypatch):
    wrong = {"naive": lambda: torch.tensor(1.0), "other": lambda: torch.tensor(2.0)}
    monkeypatch.setattr(losses, "implementations", lambda *_: wrong)
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"other has 2.0, naive 1.0"):
        losses.measure("ce", SMALL)


def test_a_slow_round_counts_for_both():
    assert losses.ratio([1.0, 20.0, 1.2], [2.0, 40.0, 2.0]) == 0.5
    assert losses.ratio([3.0], [2.0, 40.0, 2.0]) == 1.5


def row(loss, kind, time, memory, **other):
    return {
        "loss": loss,
        "implementation": kind,
        "dtype": "float32",
        "tokens": "8",
        "width": "4",
        "vocabulary": "16",
        "seconds": "2.5",
        "time_to_naive": time,
        "extra_mib": "100.0",
        "memory_to_naive": memory,
        "load": "0.5",
        "date": "2026-01-02",
        "device": "cpu",
        "torch": "2.9",
    } | other


def test_report_has_a_row_for_each_loss_of_the_last_run():
    table = [
        row("ce", losses.NAIVE, "1", "1", tokens="7"),
        row("ce", losses.NAIVE, "1", "1"),
        row("ce", losses.IN_PLACE, "9", "1"),
        row("ce", losses.IN_PLACE, "0.9", "0.05"),
        row("ce", losses.TORCH, "6", "0.2"),
        row("ldr_kl", losses.NAIVE, "1", "1", load="2.0"),
        row("ldr_kl", losses.IN_PLACE, "0.555", "0.1"),
    ]
    text = losses.report(table)
    assert "| loss | naive | in place | torch |" in text
    assert "| `ce` | 2.50 s, 100.0 MiB | 0.90, 1/20.0 | 6.00, 1/5.0 |" in text
    assert "| `ldr_kl` | 2.50 s, 100.0 MiB | 0.56, 1/10.0 |  |" in text
    assert "tokens 8" in text
    assert "load 0.5 to 2.0" in text
