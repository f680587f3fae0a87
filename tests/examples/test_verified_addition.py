"""The verifier of sums, on a model that has hardly learned to add."""

import importlib.util
import math
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "examples" / "verified_addition.py"


def test_every_way_to_admit_is_measured(capsys):
    spec = importlib.util.spec_from_file_location("verified_addition", PATH)
    example = importlib.util.module_from_spec(spec)
    sys.modules["verified_addition"] = example
    spec.loader.exec_module(example)
    sizes = example.Sizes(train=9000, fit=300, test=200, steps=150, width=32, epochs=4)
    found = example.main(["--seeds", "3"], sizes)
    del sys.modules["verified_addition"]
    assert len(found) == 6
    accuracy, share = found["all answers"][0]
    assert 0 < accuracy < 1
    assert share == 1.0
    admitted = found["verifier"][0]
    assert found["verifier, lower bound"][0][1] <= admitted[1]
    assert math.isnan(admitted[0]) == (admitted[1] == 0)
    assert "alpha 0.95, seeds [3]" in capsys.readouterr().out
