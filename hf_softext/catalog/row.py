"""What a row of the catalogue holds."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    year: int
    arxiv: str


@dataclass(frozen=True)
class Method:
    """One row of the catalogue.

    Attributes:
        name: what the user types.
        family: what the method is: "attention" is a name for `attn_implementation=`,
            "quantization" a config for `quantization_config=`, "adapter" one for
            `get_peft_model`, "head" a class that is fitted behind a frozen model, "loss" a name
            for `get_loss` and for the `loss` of a trainer.
        summary: one line, no full stop.
        paper: the publication.
        path: "module:attribute" of the implementation.
        usage: the line of Python that switches it on.
        status: "stable" or "experimental".
        extra: the optional dependency group that it needs, if any.
    """

    name: str
    family: str
    summary: str
    paper: Paper
    path: str
    usage: str
    status: str = "stable"
    extra: str | None = None

    def load(self) -> Any:
        """Import and return the implementation."""
        module, _, attribute = self.path.partition(":")
        return getattr(importlib.import_module(module), attribute)
