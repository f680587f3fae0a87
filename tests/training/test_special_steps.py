"""Two processes take the step of one, also where a step is more than a forward pass."""

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_two
from tests.training.special_steps import NAMES, take


def test_two_processes_take_the_step_of_one(tmp_path):
    run_two("tests.training.special_steps", str(tmp_path))
    for name in NAMES:
        one, two = take(name, tmp_path / "one", 16, 1), load_file(tmp_path / f"{name}.safetensors")
        assert one["gradient"].abs().max() > 1e-3
        assert two["loss"].item() == pytest.approx(one["loss"].item(), rel=1e-4), name
        # an attack turns rounding into a little more
        torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-3, atol=1e-5)
