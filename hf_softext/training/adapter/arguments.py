"""Arguments of the training of an adapter."""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hf_softext.catalog import did_you_mean
from hf_softext.quantization.baq.options import OPTIONS
from hf_softext.training.arguments import (
    is_config,
    json_object,
    parse_arguments,
    read_config,
)
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.classifier.arguments import ClassifierArguments

# an SNNK layer starts as what it replaces and moves slowly; the other is what LoRA is tuned around
LEARNING_RATES = {"snnk": 1e-2}
LEARNING_RATE = 1e-3


@dataclass
class AdapterFields:
    """What the arguments of a program have besides, for an adapter on its model.

    A keyword in a YAML file and on the command line is the same run.
    """

    adapter: str = field(
        default="snnk",
        metadata={"help": "Adapter by name: snnk, or one of peft, such as lora, vera or ia3."},
    )
    adapter_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of the adapter's config as JSON, or a mapping in the file."},
    )
    quantization: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Quantize the model first by BAQ: bits and other keywords of BaqConfig as JSON "
            "or a mapping in the file; calibrated with the text that is trained on."
        },
    )
    learning_rate: float = field(
        default=None,  # pyright: ignore[reportAssignmentType]  a number after __post_init__
        metadata={"help": "Peak learning rate; by default 1e-2 for snnk, 1e-3 for any other."},
    )

    def __post_init__(self) -> None:
        for name in ("adapter_kwargs", "quantization"):
            given = getattr(self, name)
            if given is not None:
                setattr(self, name, dict(sorted(json_object(name, given).items())))
        self.adapter = str(self.adapter).lower()
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES.get(self.adapter, LEARNING_RATE)
        # of `TrainingArguments`, which it is mixed into
        super().__post_init__()  # pyright: ignore

    def keywords(self) -> dict[str, Any]:
        """The parsed `adapter_kwargs`, a copy: peft writes into what it is given."""
        return deepcopy(json_object("adapter_kwargs", self.adapter_kwargs or {}))

    def quantization_options(self) -> dict[str, Any] | None:
        """The parsed `quantization`; None for a model that is loaded as it is."""
        return None if self.quantization is None else json_object("quantization", self.quantization)

    def check_adapter(self, task: str) -> None:
        """Raise ValueError for an adapter or a quantization that cannot be meant."""
        from hf_softext.quantization.baq.config import BaqConfig
        from hf_softext.training.adapter.config import adapter_config

        if task not in TASKS or not isinstance(self, TASKS[task]):
            mine = next(name for name, kind in TASKS.items() if isinstance(self, kind))
            raise ValueError(f"task={task!r}: these are the arguments of {mine!r}.")
        adapter_config(self.adapter, self.keywords())
        options = self.quantization_options()
        for name in options or {}:
            if name not in OPTIONS:
                near = did_you_mean(name, [*OPTIONS])
                raise ValueError(f"quantization: BaqConfig takes no {name!r} here.{near}")
        if options is not None:
            BaqConfig(**options)


@dataclass
class AdapterClassifierArguments(AdapterFields, ClassifierArguments):
    """`ClassifierArguments`, for an adapter and a head.

    `model`, `data` and `output_dir` are needed.
    """

    task: str = field(
        default="text-classification",
        metadata={"help": "text-classification, or causal-lm, which has arguments of its own."},
    )

    def check(self) -> None:
        """Raise ValueError for a value that is out of range or goes with no other."""
        super().check()
        self.check_adapter(self.task)
        if self.freeze_encoder:
            raise ValueError(
                "freeze_encoder=True would leave the head alone, which softext train classifier "
                "trains; with an adapter the model itself is frozen already."
            )


@dataclass
class AdapterCausalLMArguments(AdapterFields, CausalLMArguments):
    """`CausalLMArguments`, for an adapter on a checkpoint.

    `model`, `data` and `output_dir` are needed.
    """

    task: str = field(
        default="causal-lm",
        metadata={"help": "causal-lm, or text-classification, which has arguments of its own."},
    )
    test_factors: list[int] = field(
        default_factory=lambda: [1],
        metadata={"help": "Lengths to test at, as multiples of the training length."},
    )
    passkey_samples: int = field(
        default=0,
        metadata={"help": "Passkey windows for each length and depth; 0 leaves the test out."},
    )

    def check(self) -> None:
        """Raise ValueError for a value that is out of range or goes with no other."""
        super().check()
        self.check_adapter(self.task)
        if not self.model:
            raise ValueError("model is missing: an adapter goes into a checkpoint.")


TASKS: dict[str, Any] = {
    "text-classification": AdapterClassifierArguments,
    "causal-lm": AdapterCausalLMArguments,
}


def parse_adapter_arguments(
    argv: Sequence[str] | None = None, usage: str = "%(prog)s"
) -> AdapterClassifierArguments | AdapterCausalLMArguments:
    """Parse `[CONFIG.yaml] [--name value ...]` into the arguments of the task that it names.

    Args:
        argv: the command line without the program; by default this process's.
        usage: the program, for `--help`.

    Returns:
        The arguments, as `parse_arguments` makes them.

    Raises:
        ValueError: an unknown task, or as `parse_arguments`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--task")
    task = known.parse_known_args(words)[0].task
    if task is None and words and is_config(words[0]):
        task = read_config(words[0]).get("task")
    task = task or "text-classification"
    if task not in [*TASKS]:
        raise ValueError(f"task={task!r} is unknown.{did_you_mean(str(task), [*TASKS])}")
    usage = f"{usage} [CONFIG.yaml] [--task {'|'.join(TASKS)}] [--name value ...]"
    return parse_arguments(TASKS[task], words, usage)
