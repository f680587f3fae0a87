"""Arguments of the training of a text classifier."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from hf_softext.training.arguments import json_object
from hf_softext.training.softext_arguments import SoftextArguments


@dataclass
class ClassifierArguments(SoftextArguments, TrainingArguments):
    """`TrainingArguments` with a loss by name, what to train, and on what.

    `model`, `data` and `output_dir` are needed.
    """

    model: str | None = field(
        default=None, metadata={"help": "Encoder or classifier: a folder or a hub id."}
    )
    data: str | None = field(
        default=None,
        metadata={"help": "Labelled texts: .jsonl, .csv, .tsv, .parquet, or a dataset's name."},
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a dataset that has several."}
    )
    test_data: str | None = field(
        default=None,
        metadata={"help": "What to test on; by default a share of the data that is held out."},
    )
    text_column: str = field(default="text", metadata={"help": "The column of the texts."})
    label_column: str = field(
        default="label",
        metadata={"help": "The column of the labels: names, numbers, or lists of them."},
    )
    held_out: float = field(
        default=0.1, metadata={"help": "Share of the data that is tested on, without test_data."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a text that are used."})
    attention: str | None = field(
        default=None,
        metadata={"help": "Attention method, or sdpa or eager; by default what the model has."},
    )
    attention_parameters: str = field(
        default="{}",
        metadata={"help": "Parameters of the attention method as JSON, or a mapping in the file."},
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Train the head alone, on the encoder as it is."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts in a batch."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data."})
    logging_steps: float = field(
        default=50, metadata={"help": "Steps between two lines of the log."}
    )
    save_steps: float = field(
        default=500, metadata={"help": "Steps between two points to resume from."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Points to resume from that are kept."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available,
        metadata={"help": "Pin memory; by default where there is an accelerator."},
    )

    def method_parameters(self) -> dict[str, Any]:
        """The parsed `attention_parameters`."""
        return json_object("attention_parameters", self.attention_parameters)

    def check(self) -> None:
        """Raise ValueError for a value that is out of range."""
        if self.test_data is None and not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out!r} must be above 0 and below 1.")
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length!r} must be at least 2.")
