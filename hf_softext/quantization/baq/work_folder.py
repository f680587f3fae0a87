"""The blocks that are done, in a folder, so that a run that was broken off goes on.

A block is one safetensors file, written under another name first: what has its name is whole. Under
several processes the main one writes, and all read: the folder must be on a disk that all of them
see.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_softext.quantization.baq.packing import pack, unpack
from hf_softext.quantization.baq.processes import from_main, processes
from hf_softext.quantization.baq.weight import QuantizedWeight, Sensitivity
from hf_softext.resume import claim

# elements of each weight that its digest looks at
_SAMPLED = 256


@dataclass(frozen=True)
class ModuleReport:
    """What became of one module.

    Attributes:
        name: of the module.
        rows: O.
        columns: I.
        loss: trace(E H E^T) / trace(W H W^T), with E the error of the weight W and H the Gram
            matrix of its inputs; with solver="rtn" and without inputs, H is the identity.
        uniform_loss: the same with all columns at one width, the nearest to the average.
        tokens: how many inputs H is the sum of.
        damp: the damping that made H invertible.
    """

    name: str
    rows: int
    columns: int
    loss: float
    uniform_loss: float
    tokens: int
    damp: float


class WorkFolder:
    """What is done of a run; without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None, request: Mapping[str, Any]):
        """Make a folder this run's own, or make sure that it is.

        Raises:
            ValueError: it holds another run.
        """
        self.folder = None if folder is None else Path(folder)
        error = None
        if self.folder is not None and processes().is_main_process:
            try:
                claim(self.folder, request)
            except ValueError as refusal:
                # the other processes must not go on either
                error = str(refusal)
        error = from_main(error)
        if error is not None:
            raise ValueError(error)

    def save_sensitivities(self, position: int, found: Mapping[str, Sensitivity]) -> None:
        """Write what was measured in one block."""
        tensors = {name: one.losses for name, one in found.items()}
        self._save(
            f"measured-{position:05d}", tensors, {name: one.rows for name, one in found.items()}
        )

    def load_sensitivities(self, position: int, names: tuple[str, ...]) -> dict[str, Sensitivity]:
        """What was measured in a block that is done."""
        tensors, rows = self._load(f"measured-{position:05d}", names)
        return {name: Sensitivity(rows[name], tensors[name]) for name in names}

    def save_weights(
        self,
        position: int,
        found: Mapping[str, QuantizedWeight],
        reports: Mapping[str, ModuleReport],
    ) -> None:
        """Write the quantized weights of one block."""
        tensors, notes = {}, {}
        for name, one in found.items():
            tensors[f"{name}.planes"] = pack(one.codes, one.levels)
            tensors[f"{name}.levels"] = one.levels
            tensors[f"{name}.ranges"] = one.ranges
            tensors[f"{name}.clip"] = one.clip
            notes[name] = {"zero_point": one.zero_point, **asdict(reports[name])}
        self._save(f"quantized-{position:05d}", tensors, notes)

    def load_weights(
        self, position: int, names: tuple[str, ...]
    ) -> dict[str, tuple[QuantizedWeight, ModuleReport]]:
        """The quantized weights of a block that is done."""
        tensors, notes = self._load(f"quantized-{position:05d}", names)
        found = {}
        for name in names:
            zero_point = notes[name].pop("zero_point")
            report = ModuleReport(**notes[name])
            levels = tensors[f"{name}.levels"]
            # the columns come out in order of their levels
            codes = torch.empty(report.rows, report.columns, dtype=torch.uint8)
            order = levels.argsort(stable=True)
            codes[:, order] = unpack(tensors[f"{name}.planes"], levels, report.rows).T
            ranges, clip = tensors[f"{name}.ranges"], tensors[f"{name}.clip"]
            found[name] = (QuantizedWeight(codes, levels, ranges, clip, zero_point), report)
        return found

    def done(self, kind: str, blocks: list[tuple[str, ...]]) -> int:
        """How many blocks, from the first, need not be done again.

        Args:
            kind: "measured" or "quantized".
            blocks: the names of the modules of each block.

        Returns:
            The count; a file that is damaged counts as missing, as do those after it.
        """
        count = 0
        if self.folder is not None and processes().is_main_process:
            for position, names in enumerate(blocks):
                try:
                    self._load(f"{kind}-{position:05d}", names)
                except (OSError, SafetensorError, ValueError):
                    break
                count += 1
        return from_main(count)

    def _save(self, name: str, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        if self.folder is not None and processes().is_main_process:
            staged = self.folder / f"{name}.tmp"
            plain = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
            save_file(plain, staged, metadata={"notes": json.dumps(notes)})
            os.replace(staged, self.folder / f"{name}.safetensors")

    def _load(self, name: str, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(Path(self.folder or "") / f"{name}.safetensors", framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("notes", "{}"))
            if set(notes) != set(names):
                raise ValueError(f"{name}.safetensors holds other modules.")
            return {key: file.get_tensor(key) for key in file.keys()}, notes  # noqa: SIM118


def weights_digest(model: nn.Module) -> str:
    """A few elements of each weight of a model, its shape and its extremes, as one hash.

    It tells models apart, not a weight that was tampered with. It does not depend on the number of
    threads.

    Raises:
        ValueError: a weight is not finite, or is not in memory.
    """
    digest = hashlib.sha256()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.is_meta:
            raise ValueError(
                f"{name} is not in memory (offloaded to disk?): quantize with a device_map that "
                "keeps the whole model on devices."
            )
        if not weight.numel():
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLED)]
        # a mask among the buffers may well hold -inf
        if name in parameters and weight.is_floating_point() and weight.element_size() > 1:
            ends = torch.stack(flat.aminmax())
            if not ends.isfinite().all():
                raise ValueError(f"{name} holds inf or NaN: the model cannot be quantized.")
            sample = torch.cat([sample, ends])
        digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
