"""The splits of a fit, in a folder, so that a fit that was broken off goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_softext.heads.sdm.training import SplitTraining
from hf_softext.resume import claim

_NOTES = ("epoch", "best_loss", "best_epoch", "history")


class SplitFiles:
    """One safetensors file for each split that is done, and one for the split in progress.

    A file is written under another name first: what has its name is whole.

    Args:
        folder: None: nothing is kept.
        request: what makes two fits the same, as JSON can say it.

    Raises:
        ValueError: the folder holds another fit, or something else.
    """

    def __init__(self, folder: str | Path | None, request: Mapping[str, Any]):
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            claim(self.folder, request)

    def load(self, split: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and notes of a split that is done; None if it is not."""
        return self._read(f"split-{split:03d}")

    def save(self, split: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Write a split that is done."""
        self._write(f"split-{split:03d}", tensors, notes)
        if self.folder is not None:
            _path(self.folder, f"progress-{split:03d}").unlink(missing_ok=True)

    def save_progress(self, split: int, training: SplitTraining) -> None:
        """Write where a training is, bit by bit."""
        tensors = {"generator": training.generator.get_state()}
        tensors |= {"similarity": training.similarity, "distance": training.distance}
        tensors |= {f"now.{name}": value for name, value in training.adaptor.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in training.best.items()}
        for number, state in training.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        self._write(
            f"progress-{split:03d}", tensors, {name: getattr(training, name) for name in _NOTES}
        )

    def load_progress(self, split: int, training: SplitTraining) -> None:
        """Have a training go on where it was, if there is a file of it."""
        found = self._read(f"progress-{split:03d}")
        if found is None:
            return
        tensors, notes = found
        for name in _NOTES:
            setattr(training, name, notes[name])
        home = training.similarity.device
        training.generator.set_state(tensors.pop("generator"))
        for name in ("similarity", "distance"):
            setattr(training, name, tensors.pop(name).to(home))
        groups: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            # the optimizer moves its state itself, all but the count of steps
            groups[group][rest] = value if group == "optimizer" else value.to(home)
        training.adaptor.load_state_dict(groups["now"])
        training.best = groups["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = value
        whole = training.optimizer.state_dict()
        training.optimizer.load_state_dict({**whole, "state": state})

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self.folder is None:
            return None
        try:
            with safe_open(_path(self.folder, name), framework="pt") as file:
                notes = json.loads((file.metadata() or {})["notes"])
                return {key: file.get_tensor(key) for key in file.keys()}, notes  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def _write(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        path = _path(self.folder, name)
        staged = path.with_suffix(".tmp")
        # safetensors takes no two names for one memory
        copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        save_file(copies, staged, metadata={"notes": json.dumps(notes)})
        os.replace(staged, path)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
