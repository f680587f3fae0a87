"""Checksums of the tensors of a checkpoint.

Eight hexadecimal digits for each tensor, crc32 over name, dtype, shape and bytes, in the order of
the names. They lie in `config.json`: safetensors writes the entries of its own header in an order
that changes from one run to the next, and the same model is to give the same bytes.

Against accidents: whoever means to change a checkpoint can write new checksums.
"""

import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_DIGITS = 8
CHECKSUMS = re.compile(f"([0-9a-f]{{{_DIGITS}}})+")


def checksum(name: str, tensor: Tensor) -> str:
    """Eight hexadecimal digits over all that a file says about a tensor."""
    head = f"{name} {tensor.dtype} {list(tensor.shape)} ".encode()
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{zlib.crc32(data, zlib.crc32(head)):08x}"


def checksums(tensors: Mapping[str, Tensor]) -> str:
    """Those of all tensors of a checkpoint, by the names under which they are written."""
    return "".join(checksum(name, tensors[name]) for name in sorted(tensors))


def verify(files: Sequence[str | Path], expected: str | None) -> None:
    """Compare every tensor of a checkpoint with its checksum.

    Each file is read once; nothing is kept in memory.

    Args:
        files: all files of the checkpoint.
        expected: what `checksums` gave when it was written, if that is known.

    Raises:
        ValueError: a file that is not safetensors, a tensor that is not what was written, or is
            missing, or was not there.

    Warns:
        UserWarning: there are no checksums.
    """
    found = {}
    for path in map(Path, files):
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is not a safetensors file; BAQ checkpoints are nothing else.")
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {"format": "pt"}).get("format") != "pt":
                    raise ValueError(_damaged(path, "its header is not what was saved"))
                for name in file.keys():  # noqa: SIM118  # not a mapping
                    one = "" if expected is None else checksum(name, file.get_tensor(name))
                    found[name] = one, path
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(_damaged(path, str(error))) from error
    if expected is None:
        warnings.warn(
            f"the model's config has no checksums of {files[0]}: whether its tensors are what was "
            "saved cannot be checked. To have it checked, save the model again with hf_softext.",
            UserWarning,
            stacklevel=2,
        )
        return
    starts = range(0, len(expected), _DIGITS)
    if len(found) != len(starts):
        raise ValueError(
            f"{', '.join(map(str, files))}: {len(found)} tensors, but {len(starts)} were saved. "
            "Take a fresh copy of the checkpoint."
        )
    for name, start in zip(sorted(found), starts, strict=True):
        one, path = found[name]
        if one != expected[start : start + _DIGITS]:
            raise ValueError(_damaged(path, f"{name!r} is not what was saved"))


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged, cut short, of another checkpoint than the config, or was changed "
        f"after it was saved: {reason}. Take a fresh copy of the checkpoint."
    )
