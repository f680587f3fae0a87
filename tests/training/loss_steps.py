"""One optimizer step of tiny models, in one process or several: what gradient does it take?

torchrun --nproc_per_node 2 loss_steps.py FOLDER LOSS MODEL: writes FOLDER/gradient.safetensors.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file

from hf_softext.training.softext_arguments import SoftextTrainingArguments
from hf_softext.training.softext_trainer import SoftextTrainer
from tests.processes import leave

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "pad_token_id": 0,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROWS, LENGTH = 16, 7


def model(kind: str) -> Any:
    """A tiny model: "classes", "binary", "multilabel", "values" or "causal"."""
    torch.manual_seed(0)
    if kind == "causal":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, bos_token_id=None, eos_token_id=None))
    labels = {"classes": 3, "binary": 2, "multilabel": 4, "values": 1}[kind]
    return hf.BertForSequenceClassification(hf.BertConfig(**SIZES, **STILL, num_labels=labels))


def dataset(kind: str, rows: int = ROWS) -> Dataset:
    """Random data; labels of a causal model are of unequal number."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40, (rows, LENGTH), generator=draw)
    labels: torch.Tensor = {
        "classes": torch.randint(0, 3, (rows,), generator=draw),
        "binary": torch.arange(rows) % 2,
        "multilabel": (torch.rand(rows, 4, generator=draw) < 0.5).float(),
        "values": torch.randn(rows, generator=draw),
        "causal": tokens.masked_fill(torch.arange(LENGTH) < torch.arange(rows)[:, None] % 5, -100),
    }[kind]
    return Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})


def arguments(folder: Any, batch: int, accumulation: int, **more: Any) -> SoftextTrainingArguments:
    """Plain SGD with a learning rate of 0: the step leaves its gradient to look at."""
    given = {
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return SoftextTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{**given, **more},
    )


class KeepGradient(hf.TrainerCallback):
    """Keeps the gradient of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        """Copy it, before the optimizer takes it."""
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.gradient = torch.cat(found).clone()


def step(trainer_class: Any, kind: str, args: Any, **given: Any) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one optimizer step over all rows."""
    keep = KeepGradient()
    trainer = trainer_class(
        model=model(kind), args=args, train_dataset=dataset(kind), callbacks=[keep], **given
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses[0], keep.gradient


def main(folder: str, loss: str, kind: str) -> None:
    """Two processes, two micro-batches, four rows."""
    torch.set_num_threads(1)
    value, gradient = step(SoftextTrainer, kind, arguments(folder, 4, 2), loss=loss)
    if PartialState().is_main_process:
        found = {"gradient": gradient, "loss": torch.tensor([value])}
        save_file(found, Path(folder) / "gradient.safetensors")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:4])
