"""One optimizer step of the Trainers that compute more than logits, in one process or several.

torchrun --nproc_per_node 2 special_steps.py FOLDER: writes FOLDER/<name>.safetensors for each.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file

from hf_softext.training.adversarial import AdversarialTrainer, AdversarialTrainingArguments
from hf_softext.training.aggregate import AggregateTrainer
from hf_softext.training.distillation import DistillationTrainer
from hf_softext.training.softext_arguments import SoftextTrainingArguments
from tests.processes import leave
from tests.training.loss_steps import ROWS, SIZES, KeepGradient, arguments, dataset, model


def adversarial_arguments(folder: Any, batch: int, accumulation: int, **more: Any) -> Any:
    """Those of `loss_steps`, and an attack."""
    known = vars(arguments(folder, batch, accumulation))
    fields = {f.name: known[f.name] for f in dataclasses.fields(SoftextTrainingArguments) if f.init}
    return AdversarialTrainingArguments(**{**fields, "loss": "adv_comp_sum", **more})


def teacher(kind: str = "classes", seed: int = 7, **config: Any) -> Any:
    """Another small model, which dropout would make noisy."""
    labels = {"classes": 3, "values": 1}[kind]
    torch.manual_seed(seed)
    given = {**SIZES, "hidden_size": 8, "hidden_dropout_prob": 0.4, "num_labels": labels, **config}
    found = hf.BertForSequenceClassification(hf.BertConfig(**given))
    with torch.no_grad():
        found.classifier.weight.normal_(std=1.0)
    return found


def bags(size: int = 2) -> Dataset:
    """The values of `loss_steps` in bags of samples that stand apart."""
    data = dataset("values")
    number = torch.arange(ROWS) % (ROWS // size)
    means = torch.tensor(data["labels"]).reshape(size, -1).mean(0)[number]
    data = data.remove_columns(["labels"]).add_column("bag_id", number.tolist())
    return data.add_column("labels", means.tolist())


def take(name: str, folder: Any, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Loss and gradient of one optimizer step over all rows."""
    keep = KeepGradient()
    if name == "adversarial":
        trainer = AdversarialTrainer(
            model=model("classes"),
            args=adversarial_arguments(folder, batch, accumulation, attack_size=0.3),
            train_dataset=dataset("classes"),
            callbacks=[keep],
        )
    elif name == "distillation":
        trainer = DistillationTrainer(
            model=model("classes"),
            teacher=teacher(),
            args=arguments(folder, batch, accumulation),
            train_dataset=dataset("classes"),
            callbacks=[keep],
            loss="dhkd",
        )
    else:
        trainer = AggregateTrainer(
            model=model("values"),
            args=arguments(folder, batch, accumulation),
            train_dataset=bags(),
            callbacks=[keep],
            loss="aggregate",
        )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"gradient": keep.gradient, "loss": torch.tensor(losses[:1])}


NAMES = ("adversarial", "distillation", "aggregate")


def main(folder: str) -> None:
    """Two processes, two micro-batches, four rows."""
    torch.set_num_threads(1)
    for name in NAMES:
        found = take(name, folder, 4, 2)
        if PartialState().is_main_process:
            save_file(found, Path(folder) / f"{name}.safetensors")
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
