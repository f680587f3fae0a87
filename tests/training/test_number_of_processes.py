"""A run that is continued in another number of processes."""

import torch

from tests.processes import run_two
from tests.training.interrupted_run import KEPT, trainer


def test_what_two_processes_began_one_continues(tmp_path):
    whole = trainer(tmp_path / "whole", 8)
    whole.train()
    run_two("tests.training.interrupted_run", str(tmp_path / "two"))
    resumed = trainer(tmp_path / "resumed", 8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "two" / f"checkpoint-{KEPT}"))
    assert resumed.state.global_step == whole.state.global_step
    # every sample was seen, on either side of the interruption, by one process or the other
    assert (whole.loss.updates > 0).all()
    assert torch.equal(resumed.loss.updates, whole.loss.updates)
    torch.testing.assert_close(resumed.loss.lambdas, whole.loss.lambdas, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
