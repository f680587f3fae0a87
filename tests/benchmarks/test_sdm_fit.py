"""The script that measures a fit, small."""

import runpy
import sys
from pathlib import Path

import _record

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_small_fit_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    sizes = ["--rows", "400", "--features", "16", "--exemplar-dim", "8", "--epochs", "150"]
    monkeypatch.setattr(sys, "argv", ["sdm_fit.py", *sizes, "--splits", "1"])
    runpy.run_path(str(FOLDER / "sdm_fit.py"), run_name="__main__")
    (row,) = _record.read(tmp_path / "sdm_fit.csv")
    assert (row["rows"], row["epochs"], row["index"]) == ("400", "150", "torch")
    assert float(row["seconds"]) > 0
    assert 0.5 < float(row["accuracy"]) <= 1
    assert f"| 400 | 16 | 8 | 150 | 1 | torch | {row['device']} |" in capsys.readouterr().out
