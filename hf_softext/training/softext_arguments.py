"""Arguments of a training with a loss by name."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_softext.training.arguments import json_object


@dataclass
class SoftextArguments:
    """The fields that `SoftextTrainingArguments` adds, for other arguments to take in.

    @dataclass
    class MyArguments(SoftextArguments, Seq2SeqTrainingArguments): ...
    """

    loss: str = field(default="ce", metadata={"help": "Loss by name; `softext list` shows them."})
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of the loss as JSON, or a mapping in the file."},
    )
    fused: str = field(
        default="auto",
        metadata={
            "help": "Loss of a language model without its logits: auto (where the vocabulary is "
            "larger than the hidden size and the model allows it), on (or an error) or off."
        },
    )
    perp_grad: bool = field(
        default=False,
        metadata={"help": "Take out of every gradient what only scales the weights."},
    )
    watch_collapse: bool = field(
        default=False,
        metadata={"help": "Log how much of a batch cross-entropy can hardly learn from."},
    )
    report: bool = field(
        default=False,
        metadata={
            "help": "Write report.html, with every curve that was logged, wherever the "
            "model is saved."
        },
    )

    def loss_arguments(self) -> dict[str, Any]:
        """The parsed `loss_kwargs`."""
        return {} if self.loss_kwargs is None else json_object("loss_kwargs", self.loss_kwargs)


@dataclass
class SoftextTrainingArguments(SoftextArguments, TrainingArguments):
    """`TrainingArguments` with a loss by name.

    args = SoftextTrainingArguments(output_dir="out", loss="ldr_kl", loss_kwargs={"lam": 10})
    """
