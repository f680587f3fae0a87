"""Where a training program lets another one have its way with the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_softext.training.checkpoints import needed


class ModelHook:
    """What happens to the model of a training besides the training; this one changes nothing.

    `train_classifier` and `train_causal_lm` call its methods, in this order. A program that does
    more with the model, such as training an adapter on it, overrides some.
    """

    def source(self, args: Any, tokenizer: Any, texts: Any, claim: Callable[[], None]) -> str:
        """Which checkpoint to load.

        Args:
            args: of the training, whose `output_dir` is the folder of the work in progress.
            tokenizer: of the model.
            texts: what will be trained on: a dataset with a column "text", or token ids (N,).
            claim: makes that folder this run's own; to be called before anything is written there.

        Returns:
            A folder or a hub id.
        """
        return needed(args, "model")

    def load(self, kind: Any, source: str, **given: Any) -> Any:
        """The checkpoint as a class of transformers, with the keywords of `from_pretrained`."""
        return kind.from_pretrained(source, **given)

    def wrap(self, model: Any, stored: torch.dtype) -> tuple[Any, torch.dtype]:
        """What is trained, and the dtype to save it in.

        Args:
            model: on its attention, in float32.
            stored: the dtype of the checkpoint.
        """
        return model, stored

    def facts(self, found: dict[str, Any]) -> dict[str, Any]:
        """What the results and the card say, given what they would say without this."""
        return found

    def write_card(
        self, write: Callable[..., None], staged: Path, final: Path, facts: dict[str, Any], *of: Any
    ) -> None:
        """Write `README.md`, and whatever else the checkpoint is to hold.

        Args:
            write: the program's own card: a function of a folder, a name, the facts and `of`.
            staged: where the checkpoint is, complete but for this.
            final: where it will be.
            facts: how it was trained.
            *of: what was measured.
        """
        write(staged, final.name, facts, *of)
