"""What a quantized model takes on disk, and for what."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.integrations.accelerate import load_offloaded_parameter

from hf_softext.quantization.baq.allocation import allocate_alike, nominal_rate, packed_rate
from hf_softext.quantization.baq.blocks import find_targets
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.experts import split_experts
from hf_softext.quantization.baq.grid import WIDTHS, width
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.packing import overhead_bits, plane_bits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModuleSize:
    """One quantized module; its bias is not counted.

    Attributes:
        name: of the module.
        rows: O.
        columns: I.
        widths: how many of its columns take 0, 1, ... 8 bits.
        zero_point: whether its grid passes through zero.
    """

    name: str
    rows: int
    columns: int
    widths: tuple[int, ...]
    zero_point: bool = False

    @property
    def weights(self) -> int:
        """O I."""
        return self.rows * self.columns

    @property
    def plane_bytes(self) -> int:
        """What the codes take."""
        planes = sum(bits * count for bits, count in enumerate(self.widths))
        return planes * plane_bits(self.rows) // 8

    @property
    def overhead_bytes(self) -> int:
        """What level map, row ranges and clip factors take."""
        return overhead_bits(self.rows, self.columns, self.zero_point) // 8

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.plane_bytes + self.overhead_bytes

    @property
    def bits(self) -> float:
        """True bits of a weight."""
        return 8 * self.bytes / self.weights


@dataclass(frozen=True)
class SizeReport:
    """The tensors of a checkpoint; `print` shows a table.

    Attributes:
        modules: the quantized modules.
        embedding_bytes: embeddings and output head, what is shared counted once.
        other_bytes: all else: norms, biases, layers left as they are.
    """

    modules: tuple[ModuleSize, ...]
    embedding_bytes: int
    other_bytes: int

    @property
    def weights(self) -> int:
        """Number of quantized weights."""
        return sum(one.weights for one in self.modules)

    @property
    def quantized_bytes(self) -> int:
        """What they take."""
        return sum(one.bytes for one in self.modules)

    @property
    def bits(self) -> float:
        """True bits of a quantized weight."""
        return 8 * self.quantized_bytes / self.weights

    @property
    def widths(self) -> tuple[int, ...]:
        """How many columns take 0, 1, ... 8 bits."""
        return tuple(
            sum(counts) for counts in zip(*(one.widths for one in self.modules), strict=True)
        )

    @property
    def bytes(self) -> int:
        """All tensors of the checkpoint. Files have a header besides, see `file_bytes`."""
        return self.quantized_bytes + self.embedding_bytes + self.other_bytes

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The parts of the checkpoint: name, number of weights, bytes, bits of a weight."""
        return [
            (
                f"quantized, {len(self.modules)} modules",
                f"{self.weights:,}",
                f"{self.quantized_bytes:,}",
                f"{self.bits:.4f}",
            ),
            ("embeddings and head", "", f"{self.embedding_bytes:,}", ""),
            ("all else", "", f"{self.other_bytes:,}", ""),
            ("together", "", f"{self.bytes:,}", ""),
        ]

    def __str__(self) -> str:
        names = [one.name for one in self.modules] + [name for name, *_ in self.rows()]
        wide = max(map(len, names))
        head = f"{'':{wide}}  {'weights':>15}  {'bytes':>15}  {'bits':>7}  columns of 0 to 8 bits"
        lines = [
            f"{one.name:{wide}}  {one.weights:>15,}  {one.bytes:>15,}  {one.bits:>7.4f}  "
            + " ".join(map(str, one.widths))
            for one in self.modules
        ]
        ends = [
            f"{name:{wide}}  {n:>15}  {size:>15}  {bits:>7}" for name, n, size, bits in self.rows()
        ]
        ends[0] += "  " + " ".join(map(str, self.widths))
        return "\n".join(line.rstrip() for line in [head, *lines, *ends])


def size_report(model: nn.Module) -> SizeReport:
    """What a quantized model takes on disk.

    Args:
        model: with `BaqLinear` modules.

    Raises:
        ValueError: it has none.
    """
    modules = {name: one for name, one in model.named_modules() if isinstance(one, BaqLinear)}
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no quantized module; load it with quantization_config="
            "BaqConfig(...), or ask `estimate` what it would take."
        )
    sizes = [
        ModuleSize(
            name,
            one.out_features,
            one.in_features,
            _histogram(_levels(model, name, one)),
            one.zero_point,
        )
        for name, one in modules.items()
    ]
    counted = [
        t for one in modules.values() for key, t in one.state_dict().items() if key != "bias"
    ]
    return SizeReport(tuple(sizes), *_rest(model, counted))


def code_rates(model: nn.Module) -> tuple[float, float]:
    """The average of log2 of the levels of a code, as the authors report it, and of its bits."""
    modules = [(n, one) for n, one in model.named_modules() if isinstance(one, BaqLinear)]
    weights = sum(one.out_features * one.in_features for _, one in modules)
    nominal = packed = 0.0
    for name, one in modules:
        levels, share = _levels(model, name, one), one.out_features * one.in_features / weights
        nominal += share * nominal_rate(levels)
        packed += share * packed_rate(levels)
    return nominal, packed


def estimate(model: "PreTrainedModel | PreTrainedConfig", config: BaqConfig | float) -> SizeReport:
    """What a model would take on disk once quantized; nothing is computed but sizes.

    The whole is right to one bit of a column, as far as no column is dead. Which module gets how
    many bits is decided by the data: here all columns are alike.

    Args:
        model: full precision, also on the meta device, or the config of one.
        config: how it would be quantized, or just the bits. For the allocation "paper" this is the
            nominal size; the authors' widths give a larger file.

    Raises:
        ValueError: the bits cannot be reached, or there is nothing to quantize.
    """
    given = config if isinstance(config, BaqConfig) else BaqConfig(bits=config)
    shell = _on_meta(model)
    split_experts(shell)
    names = find_targets(shell, given.modules_to_not_convert).names
    shapes = {name: weight_shape(shell.get_submodule(name)) for name in names}
    levels = allocate_alike(shapes, given.settings())
    sizes = [
        ModuleSize(name, rows, columns, _histogram(levels[name]), given.allocation == "paper")
        for name, (rows, columns) in shapes.items()
    ]
    counted = [shell.get_parameter(f"{name}.weight") for name in names]
    return SizeReport(tuple(sizes), *_rest(shell, counted))


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(O, I) of an `nn.Linear` or a `Conv1D`, which keeps its weight transposed."""
    shape = module.get_parameter("weight").shape
    rows, columns = shape if isinstance(module, nn.Linear) else reversed(shape)
    return rows, columns


def file_bytes(folder: str | Path) -> tuple[int, int]:
    """Bytes of the tensors, and of the headers, of the weights files in a folder.

    Raises:
        ValueError: there are none.
    """
    # the order in which transformers looks for them
    names = {"model.safetensors"}
    index = Path(folder) / "model.safetensors.index.json"
    if not (Path(folder) / "model.safetensors").is_file() and index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    tensors = headers = 0
    for path in (Path(folder) / name for name in names):
        if not path.is_file():
            raise ValueError(
                f"folder={str(folder)!r} has no {path.name}; save a model there first."
            )
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        headers += header
        tensors += path.stat().st_size - header
    return tensors, headers


def _levels(model: Any, name: str, module: BaqLinear) -> Tensor:
    levels = module.levels
    if levels.is_meta:
        levels = load_offloaded_parameter(model, f"{name}.levels")
    return levels.int() + 1


def _histogram(levels: Tensor) -> tuple[int, ...]:
    counts = torch.bincount(levels.long().flatten().cpu()).tolist()
    widths = [0] * WIDTHS
    for level, count in enumerate(counts):
        widths[width(level) if level else 0] += count
    return tuple(widths)


def _rest(model: nn.Module, counted: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes of embeddings and head, and of everything else but what is counted already."""
    seen = {_place(tensor) for tensor in counted}
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = [0, 0]
    # embeddings first: a head that shares their weight is then counted there
    for embeddings in (True, False):
        for name, module in model.named_modules():
            if (isinstance(module, nn.Embedding) or module is head) != embeddings:
                continue
            tensors = module._parameters | {
                key: tensor
                for key, tensor in module._buffers.items()
                if key not in module._non_persistent_buffers_set
            }
            for key, tensor in tensors.items():
                full = f"{name}.{key}" if name else key
                if tensor is None or full in ignored or _place(tensor) in seen:
                    continue
                seen.add(_place(tensor))
                found[not embeddings] += tensor.numel() * tensor.element_size()
    return found[0], found[1]


def _place(tensor: Tensor) -> tuple[int, ...]:
    """The same for two tensors that are one, as tied weights are."""
    if tensor.is_meta or tensor.numel() == 0:
        return (id(tensor),)
    return tensor.data_ptr(), tensor.numel()


def _on_meta(model: "PreTrainedModel | PreTrainedConfig") -> "PreTrainedModel":
    """A model of the same class and dtype without memory."""
    kind: Any
    if isinstance(model, PreTrainedConfig):
        config, dtype = model, model.dtype
        known = (getattr(transformers, name, None) for name in config.architectures or ())
        kind = next(filter(None, known), transformers.AutoModelForCausalLM)
        make = kind.from_config if kind is transformers.AutoModelForCausalLM else kind._from_config
    else:
        config, dtype, make = model.config, model.dtype, type(model)._from_config
    with torch.device("meta"):
        # transformers writes the dtype, also one that is a string, into the config
        return make(copy.deepcopy(config), dtype=dtype)
