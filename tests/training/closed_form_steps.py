"""The closed form of a head by a Trainer, in one process or several.

torchrun --nproc_per_node 2 closed_form_steps.py FOLDER: writes FOLDER/two.safetensors.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file
from transformers import TrainingArguments

from hf_softext.training.closed_form_trainer import ClosedFormHeadTrainer
from tests.adapters.closed_form_work import model, rows
from tests.processes import leave


def arguments(folder: Any, **given: Any) -> TrainingArguments:
    """Batches of two, one of which no process can fill."""
    return TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"per_device_train_batch_size": 2, "eval_strategy": "epoch", **given},
    )


def accuracy(found: Any) -> dict[str, float]:
    """Of logits."""
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def trainer(folder: Any, more: dict[str, Any] | None = None, **given: Any) -> Any:
    """Over the rows of `closed_form_work`."""
    return ClosedFormHeadTrainer(
        model=given.pop("model", None) or model(),
        args=arguments(folder, **given),
        train_dataset=Dataset.from_dict(rows()),
        eval_dataset=Dataset.from_dict(rows(20)),
        compute_metrics=accuracy,
        **(more or {}),
    )


def result(running: Any) -> dict[str, torch.Tensor]:
    """What a training found."""
    out = running.model.classifier.out
    last = running.state.log_history[-1]
    return {
        "weight": out.weight.detach().contiguous(),
        "bias": out.bias.detach(),
        "rows": torch.tensor(running.fit.rows),
        "accuracy": torch.tensor(last["eval_accuracy"]),
        "eval_loss": torch.tensor(last["eval_loss"]),
    }


def main(folder: str) -> None:
    """Two processes."""
    torch.set_num_threads(1)
    running = trainer(Path(folder, "two"))
    assert running.args.world_size == 2
    running.train()
    if PartialState().is_main_process:
        save_file(result(running), Path(folder) / "two.safetensors")
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
