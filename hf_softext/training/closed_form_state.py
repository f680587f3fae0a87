"""What a closed-form pass over data has taken up, on disk."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_softext.adapters.snnk.random_features import RandomFeatures

_NAME = "closed_form-{}.safetensors"


class PassFile:
    """The file of one process.

    Args:
        folder: of the run.
        process: number of the process.
        request: what makes two passes the same, as JSON can say it.
    """

    def __init__(self, folder: str | Path, process: int, request: dict[str, Any]):
        self.path = Path(folder) / _NAME.format(process)
        self.request = json.dumps(request, sort_keys=True)

    def save(self, layer: str, batches: int, tensors: dict[str, Tensor]) -> None:
        """Replace the file by what was taken up until now.

        Args:
            layer: name of the output layer.
            batches: how many were taken.
            tensors: the sums of this process.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = self.path.with_suffix(".tmp")
        metadata = {"layer": layer, "batches": str(batches), "request": self.request}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, staged, metadata)
        os.replace(staged, self.path)

    def load(self) -> tuple[str, int, dict[str, Tensor]] | None:
        """Layer, batches and tensors; None where there is no file.

        Raises:
            ValueError: it belongs to another pass, or is damaged.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                said = file.metadata() or {}
            tensors = load_file(self.path)
        except SafetensorError as error:
            raise ValueError(f"{self.path} is damaged ({error}): remove it.") from error
        if said.get("request") != self.request:
            raise ValueError(
                f"{self.path} is of a pass with other data, weights, batches or processes: repeat "
                "those, or remove the file."
            )
        return said["layer"], int(said["batches"]), tensors

    def remove(self) -> None:
        """Once it is not needed."""
        self.path.unlink(missing_ok=True)


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Of everything that is saved, by two sums of each, which takes one reading of them.

    What a random head computes follows from more than that, and is taken in too.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.float()
        found = [name, *tensor.shape, values.sum().item(), values.square().sum().item()]
        digest.update(repr(found).encode())
    for module in model.modules():
        if isinstance(module, RandomFeatures):
            digest.update(repr(module).encode())
    return digest.hexdigest()[:16]
