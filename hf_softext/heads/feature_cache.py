"""Features that are done, in a folder, so that they need not be made again."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_softext.resume import claim


class FeatureCache:
    """Shards of features, each a safetensors file that is written whole or not at all.

    Args:
        folder: where caches lie, each in a folder of its own; None: nothing is kept.
        request: what makes two calls the same, as JSON can say it.
    """

    def __init__(self, folder: str | Path | None, request: Mapping[str, Any]):
        self.folder = None
        if folder is not None:
            key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
            self.folder = Path(folder) / f"features-{key[:16]}"
            claim(self.folder, request)

    def load(self, shard: int, rows: int) -> Tensor | None:
        """A shard of so many rows, float32; None if it is missing or damaged."""
        if self.folder is None:
            return None
        try:
            with safe_open(self.folder / _name(shard), framework="pt") as file:
                found = file.get_tensor("features")
        except (OSError, SafetensorError):
            return None
        return found if found.dim() == 2 and len(found) == rows else None

    def save(self, shard: int, features: Tensor) -> None:
        """Write a shard."""
        if self.folder is not None:
            # several processes may make the same one
            staged = self.folder / f"{_name(shard)}.{os.getpid()}.tmp"
            save_file({"features": features.contiguous()}, staged)
            os.replace(staged, self.folder / _name(shard))


def _name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"
