"""What gradient accumulation does to the loss of a sequence classifier, in the stock Trainer and in
ours.

    python examples/loss_scale.py

The same 16 samples in one optimizer step, whole and in four parts; a randomly initialised BERT of
one layer, no dropout. The gradient of the whole batch is the truth.
"""

import logging
import tempfile
from typing import Any

import torch
import transformers as hf
from datasets import Dataset

from hf_softext import SoftextTrainer, SoftextTrainingArguments

ROWS, LENGTH, WORDS, CLASSES = 16, 12, 100, 3


def model() -> Any:
    """The same model each time."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return hf.BertForSequenceClassification(config)


def data() -> Dataset:
    """Random tokens and classes."""
    draw = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {
            "input_ids": torch.randint(1, WORDS, (ROWS, LENGTH), generator=draw).tolist(),
            "labels": torch.randint(0, CLASSES, (ROWS,), generator=draw).tolist(),
        }
    )


class Watch(hf.TrainerCallback):
    """Keeps the length of the gradient."""

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        """Measure it, before the optimizer takes it."""
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(grads).item()


def step(trainer: Any, size: int) -> tuple[float, float]:
    """Loss and length of the gradient of one step, in parts of `size` samples."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        args = SoftextTrainingArguments(
            folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=ROWS // size,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            max_grad_norm=0.0,
        )
        running = trainer(model=model(), args=args, train_dataset=data(), callbacks=[watch])
        running.remove_callback(hf.PrinterCallback)
        running.train()
    return running.state.log_history[0]["loss"], watch.norm


def main() -> None:
    """Print the table of the README."""
    logging.disable(logging.WARNING)
    print("| 16 samples as | trainer | loss | length of the gradient |\n|---|---|---|---|")
    for size in (16, 4):
        for trainer in (hf.Trainer, SoftextTrainer):
            loss, norm = step(trainer, size)
            print(f"| {ROWS // size} x {size} | {trainer.__name__} | {loss:.4f} | {norm:.4f} |")


if __name__ == "__main__":
    main()
