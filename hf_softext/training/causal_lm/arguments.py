"""Arguments of the training of a causal language model."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from hf_softext.training.arguments import json_object
from hf_softext.training.softext_arguments import SoftextArguments


@dataclass
class CausalLMArguments(SoftextArguments, TrainingArguments):
    """`TrainingArguments` with what to train, on what, and at which lengths to test it.

    `data`, `output_dir` and one of `model`, `config` and `model_type` are needed.
    """

    model_type: str | None = field(
        default=None,
        metadata={"help": "Kind of model to train from scratch, such as llama or opt."},
    )
    config: str | None = field(
        default=None,
        metadata={"help": "Config to train from scratch: a file, a folder or a hub id."},
    )
    model: str | None = field(
        default=None, metadata={"help": "Checkpoint to train further: a folder or a hub id."}
    )
    config_overrides: str = field(
        default="{}",
        metadata={"help": "Sizes of a model from scratch as JSON, or a mapping in the file."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "A hub id, a folder, or bytes: the bytes of UTF-8. By default that of `model`, "
            "else bytes."
        },
    )
    attention: str | None = field(
        default=None,
        metadata={"help": "Attention method, or sdpa or eager; by default what the model has."},
    )
    attention_parameters: str = field(
        default="{}",
        metadata={"help": "Parameters of the attention method as JSON, or a mapping in the file."},
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Text: a file, a folder of .txt and .jsonl files, or the name of a dataset."
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a dataset that has several."}
    )
    column: str = field(
        default="text", metadata={"help": "The column of a table that holds the text."}
    )
    length: int = field(
        default=None,  # pyright: ignore[reportAssignmentType]  a number when a run has begun
        metadata={
            "help": "Tokens in a training window; by default 1024, or as many as the model has "
            "positions where these are fewer."
        },
    )
    held_out: float = field(
        default=0.1,
        metadata={"help": "Share of the text, its last part, that is tested on and never seen."},
    )
    passkey_share: float = field(
        default=0.0,
        metadata={"help": "Share of the training windows that hide a number and ask for it."},
    )
    test_factors: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16],
        metadata={"help": "Lengths to test at, as multiples of the training length."},
    )
    test_tokens: int | None = field(
        default=None,
        metadata={"help": "Held-out tokens to measure the loss on; by default all of them."},
    )
    test_batch_tokens: int = field(
        default=4096,
        metadata={"help": "Tokens in a test batch, which is one window where that is longer."},
    )
    passkey_samples: int = field(
        default=20,
        metadata={"help": "Passkey windows for each length and depth; 0 leaves the test out."},
    )
    passkey_depths: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        metadata={"help": "Where the number is hidden: shares of the text before it."},
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: steps, or a share of them below 1."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
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
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate the loss alone."})

    def overrides(self) -> dict[str, Any]:
        """The parsed `config_overrides`."""
        return json_object("config_overrides", self.config_overrides)

    def method_parameters(self) -> dict[str, Any]:
        """The parsed `attention_parameters`."""
        return json_object("attention_parameters", self.attention_parameters)

    def check(self) -> None:
        """Raise ValueError for a value that is out of range or goes with no other."""
        given = [name for name in ("model", "config", "model_type") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) if given else "none of them"
            raise ValueError(
                f"give one of model (to train further), config and model_type (to train from "
                f"scratch), not {said}."
            )
        if self.model and self.overrides():
            raise ValueError(
                f"config_overrides={self.config_overrides!r} are for a model from scratch; "
                f"model={self.model!r} has its sizes."
            )
        self.method_parameters()
        lowest = {"length": 2, "test_tokens": 2, "test_batch_tokens": 1, "passkey_samples": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ValueError(f"{name}={value!r} must be a whole number of {low} or more.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out!r} must be a share between 0 and 1.")
        if not 0 <= self.passkey_share < 1:
            raise ValueError(f"passkey_share={self.passkey_share!r} must be from 0 to below 1.")
        if not self.test_factors or min(self.test_factors) < 1:
            raise ValueError(f"test_factors={self.test_factors!r} must be whole numbers above 0.")
        if not all(0 <= depth <= 1 for depth in self.passkey_depths):
            raise ValueError(f"passkey_depths={self.passkey_depths!r} must be from 0 to 1.")
