"""The closed-form head against its rivals, small, on a file of the user's own."""

import csv
import json
import subprocess
import sys
from pathlib import Path

from hf_softext.demo.corpora import clinc150

EXAMPLE = Path(__file__).parents[2] / "examples" / "closed_form_head.py"


def test_the_table_is_what_the_file_holds(tmp_path):
    intents = ("alarm", "balance", "bill_due")
    data = {split: [row for row in rows if row[1] in intents] for split, rows in clinc150().items()}
    # as the original file has them too
    data["oos_test"] = [("what is the meaning of life", "oos")]
    (tmp_path / "data.json").write_text(json.dumps(data), encoding="utf-8")
    command = [sys.executable, str(EXAMPLE), "--data", "data.json", "--csv", "table.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 intents, rows: 60 train, 60 val, 60 test;")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "table.csv"]
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    printed = [line.split(" | ") for line in done.stdout.splitlines()[4:]]
    assert [cells[0].removeprefix("| ") for cells in printed] == [row["method"] for row in rows]
    assert len(rows) == 7
    by_method = {row["method"]: row for row in rows}
    # three intents are easy; what does not learn is at 33 %
    assert all(float(row["test"]) > 80 for row in rows)
    assert by_method["SNNK relu 64, closed form"]["trained"] == str(3 * 65)
    assert by_method["SNNK relu 64, closed form"]["tries"] == "18"
    assert by_method["ridge regression, closed form"]["test_std"] == "0.0"
