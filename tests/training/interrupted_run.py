"""The first steps of a run with a state for every sample, in one process or several.

torchrun --nproc_per_node 2 interrupted_run.py FOLDER: leaves FOLDER/checkpoint-3.
"""

import sys
from typing import Any

import torch

from hf_softext.training.softext_trainer import SoftextTrainer
from tests.processes import leave
from tests.training.loss_steps import arguments, dataset, model

# in an epoch there are two steps, so that both are in the midst of one
STEPS, KEPT = 6, 3


def trainer(folder: Any, batch: int, steps: int = STEPS) -> SoftextTrainer:
    """A trainer that keeps the checkpoint of step `KEPT`."""
    options: dict[str, Any] = {"max_steps": steps, "save_strategy": "steps", "save_steps": KEPT}
    options |= {"learning_rate": 0.01, "lr_scheduler_type": "constant"}
    args = arguments(folder, batch, 1, **options)
    return SoftextTrainer(
        model=model("classes"), args=args, train_dataset=dataset("classes"), loss="aldr_kl"
    )


def main(folder: str) -> None:
    """Eight rows a step, four in each of two processes."""
    torch.set_num_threads(1)
    trainer(folder, 4, KEPT).train()
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
