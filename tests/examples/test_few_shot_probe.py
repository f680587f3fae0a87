"""Naive Bayes against logistic regression: who is ahead where."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "few_shot_probe.py"


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.split()[0].isdigit()]
    rows = {int(line[0]): [float(one.rstrip("%")) for one in line[1:5]] for line in lines}
    return rows, {int(line[0]): " ".join(line[5:]) for line in lines}


def test_who_is_ahead_where(tmp_path):
    errors, ahead = run(
        tmp_path, "--features", "gaussian", "--per-class", "2", "20", "--draws", "2"
    )
    # where its assumption holds
    assert ahead[20] == "logistic, C=1"
    naive_bayes, _, usual, best = errors[20]
    assert naive_bayes < usual - 3
    assert abs(naive_bayes - best) < 3
    assert all(many < few for many, few in zip(errors[20], errors[2], strict=True))
    # where it does not
    errors, ahead = run(tmp_path, "--per-class", "50", "--draws", "1", "--plot", "errors.png")
    assert ahead[50] == "neither"
    assert errors[50][0] > 1.5 * errors[50][2]
    assert [path.name for path in tmp_path.iterdir()] == ["errors.png"]
