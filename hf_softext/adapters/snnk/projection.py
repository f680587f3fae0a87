"""The fixed projection of an adapter: drawn from a seed and a name, kept in float32, saved or told
by its fingerprint."""

import hashlib
from collections.abc import Callable, KeysView
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.functional.random_projection import random_projection


def draw(rows: int, columns: int, seed: int, module: str, orthogonal: bool) -> Tensor:
    """The projection of the module of that name: (rows, columns), float32, on the CPU.

    The name of the adapter, the order of modules, device, process and dtype have no part in it.
    """
    # a model that was compiled before it was adapted
    name = ".".join(part for part in module.split(".") if part != "_orig_mod")
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return random_projection(rows, columns, generator, orthogonal)


def fingerprint(projection: Tensor) -> Tensor:
    """What tells a projection from those of other seeds: its first column."""
    return projection[:, 0].clone()


class FixedTensors(nn.Module):
    """Buffers by adapter name: no dtype but float32, whatever the model around them is cast to."""

    def put(self, name: str, tensor: Tensor, persistent: bool) -> None:
        """Add or replace one."""
        self._buffers.pop(name, None)
        self.register_buffer(name, tensor, persistent=persistent)

    def keys(self) -> KeysView[str]:
        """The names of the adapters."""
        return self._buffers.keys()

    def move(self, name: str, device: torch.device) -> None:
        """Put one on a device."""
        if name in self._buffers:
            self._buffers[name] = self[name].to(device)

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name]  # type: ignore[return-value]

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]
        self._non_persistent_buffers_set.discard(name)

    def __contains__(self, name: object) -> bool:
        return name in self._buffers

    def __len__(self) -> int:
        return len(self._buffers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedTensors":
        for name, tensor in self._buffers.items():
            if tensor is not None:
                made = fn(tensor)
                self._buffers[name] = made if made.dtype == tensor.dtype else tensor.to(made.device)
        return self


class Fingerprints(FixedTensors):
    """What stands in a checkpoint for a projection that is not saved.

    Raises:
        ValueError: what is loaded belongs to another projection than the one that was drawn.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers puts what it loads here
        if isinstance(value, Tensor) and name in self.__dict__.get("_buffers", ()):
            self._check(name, value)
        super().__setattr__(name, value)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self.keys():
            if prefix + name in state_dict:
                self._check(name, state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check(self, name: str, loaded: Tensor) -> None:
        own = self[name]
        if own.is_meta or loaded.is_meta or own.shape != loaded.shape:
            return
        # machines may differ in a last bit
        if not torch.allclose(own.cpu(), loaded.float().cpu(), rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"adapter {name!r}: it was trained with another projection than the one drawn "
                "here, and its own was not saved: give the projection_seed and orthogonal of its "
                "adapter_config.json, to the model it was made for, with the releases of "
                "hf_softext and torch that made it; or train with save_projection=True."
            )
