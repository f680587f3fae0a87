from pathlib import Path

import pytest
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """The authors' own code on four seeded layers, by bits."""
    names = {"3": "3bit", "2": "2bit", "4": "4bit", "3 act-order": "act_order_3bit"}
    return {bits: load_file(GOLDEN / f"baq_{name}.safetensors") for bits, name in names.items()}
