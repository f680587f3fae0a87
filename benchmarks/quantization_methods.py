"""How each method quantizes a subject, and what its weights take.

Bits of the peers are those of codes, float16 steps and zero points, as small as their formats allow
and without padding; ours are the bytes of the saved file.
"""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _gptq_reference import gptq_reference
from quantization_subjects import Subject
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_softext.quantization.baq.blocks import Block
from hf_softext.quantization.baq.config import BaqConfig

PEERS = Path(__file__).with_name("quantization_peers.py")
BUFFERS = ("planes", "levels", "ranges", "clip")


@dataclass(frozen=True)
class Quantized:
    """What a method made of a model.

    Attributes:
        model: ready to be measured.
        bits: of a quantized weight, all counted.
        seconds: that it took.
        version: of the package that did it, where it is not this one.
    """

    model: PreTrainedModel
    bits: float
    seconds: float
    version: str = ""


def uniform_bits(weights: list[Tensor], bits: int, group: int, zero_bits: int) -> float:
    """Bits of a weight with codes of one width, and a float16 step and a zero point for each group.

    Args:
        weights: (O, I) each.
        bits: of a code.
        group: columns in a group; 0 is a whole row.
        zero_bits: of a zero point.
    """
    groups = sum(
        rows * math.ceil(columns / (group or columns)) for rows, columns in _shapes(weights)
    )
    return bits + groups * (16 + zero_bits) / sum(weight.numel() for weight in weights)


def file_bits(folder: Path, weights: int) -> float:
    """Bits of a weight in a saved model, all buffers of the quantized modules counted."""
    total = 0
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if name.rpartition(".")[2] in BUFFERS:
                total += 8 * tensor.numel() * tensor.element_size()
    return total / weights


def reference(subject: Subject, bits: int, solver: str = "gptq", **options: Any) -> Quantized:
    """Round to nearest, or GPTQ from block to block on the inputs that the quantized part gives."""
    model = subject.load()
    start = time.time()
    targets = subject.targets(model)
    weights = [model.get_submodule(name).weight for name in targets.names]
    if solver == "rtn":
        for weight in weights:
            weight.data = gptq_reference(weight.data, None, bits, **options)
    else:
        (stack,) = targets.stacks
        _block_by_block(subject, model, stack.blocks, bits, options)
    true = uniform_bits(weights, bits, options.get("group", 0), zero_bits=bits)
    return Quantized(model, true, time.time() - start)


@torch.no_grad()
def _block_by_block(
    subject: Subject,
    model: PreTrainedModel,
    blocks: tuple[Block, ...],
    bits: int,
    options: dict[str, Any],
) -> None:
    calls: list[tuple[tuple, dict]] = []
    first = model.get_submodule(blocks[0].name)
    hook = first.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    model.config.use_cache = False
    for batch in subject.batches():
        model(input_ids=batch)
    hook.remove()
    for block in blocks:
        module = model.get_submodule(block.name)
        for names in _sharing_inputs(model, module, block, calls[0]):
            gram = 0
            for inputs in _inputs(model.get_submodule(names[0]), module, calls):
                gram = gram + inputs.T @ inputs
            for name in names:
                weight = model.get_submodule(name).weight
                weight.data = gptq_reference(weight.data, gram, bits, **options)
        outputs = [module(*arguments, **named) for arguments, named in calls]
        tensors = [out if isinstance(out, Tensor) else out[0] for out in outputs]
        calls = [
            ((hidden, *arguments[1:]), named)
            for hidden, (arguments, named) in zip(tensors, calls, strict=True)
        ]


class _Reached(Exception):  # noqa: N818
    """A layer has its inputs; what follows need not be run."""


def _inputs(
    layer: nn.Module, block: nn.Module, calls: list[tuple[tuple, dict]]
) -> Iterator[Tensor]:
    seen: list[Tensor] = []

    def stop(_: nn.Module, given: tuple) -> None:
        seen.append(given[0])
        raise _Reached

    hook = layer.register_forward_pre_hook(stop)
    for arguments, named in calls:
        with suppress(_Reached):
            block(*arguments, **named)
        yield seen.pop().flatten(0, -2)
    hook.remove()


def _sharing_inputs(
    model: nn.Module, module: nn.Module, block: Block, call: tuple[tuple, dict]
) -> list[list[str]]:
    """The layers of a block in the order of their use, those with one input together."""
    uses: list[tuple[Tensor, list[str]]] = []

    def note(name: str, inputs: Tensor) -> None:
        if uses and uses[-1][0] is inputs:
            uses[-1][1].append(name)
        else:
            uses.append((inputs, [name]))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: note(name, given[0])
        )
        for name in block.modules
    ]
    module(*call[0], **call[1])
    for hook in hooks:
        hook.remove()
    return [names for _, names in uses]


class PeerFailed(RuntimeError):  # noqa: N818
    """A package could not quantize a model."""


def peer_versions(python: str) -> dict[str, str]:
    """The peers that a Python has."""
    command = [python, str(PEERS), "--versions"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peer(
    subject: Subject,
    bits: int,
    name: str,
    python: str,
    work: Path,
    group: int = 0,
    symmetric: bool = False,
) -> Quantized:
    """Have a package quantize the model in a process of its own.

    Raises:
        PeerFailed: it did not come to an end.
    """
    out, model = work / "peer", subject.load()
    modules, sequences = work / "modules.json", work / "sequences.safetensors"
    names = subject.targets(model).names
    modules.write_text(json.dumps(names), encoding="utf-8")
    weights = [model.get_submodule(name).weight for name in names]
    command = [python, str(PEERS), name, str(subject.folder), str(out), "--bits", str(bits)]
    command += [
        "--modules",
        str(modules),
        "--group",
        str(group),
        "--class",
        subject.loader.__name__,
    ]
    if name == "autoround":
        save_file({"input_ids": torch.tensor(subject.calibration())}, sequences)
        command += ["--sequences", str(sequences)]
        command += ["--symmetric"] if symmetric else []
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise PeerFailed(f"{' '.join(command)}\n{run.stderr}")
    told = json.loads(run.stdout.splitlines()[-1])
    # zero points of HQQ are float16, those of AutoRound codes
    zero_bits = 16 if name == "hqq" else 0 if symmetric else bits
    true = uniform_bits(weights, bits, group, zero_bits)
    return Quantized(subject.load(out), true, told["seconds"], told["version"])


def ours(subject: Subject, bits: float, work: Path, **options: Any) -> Quantized:
    """Quantize, save and load as a user does."""
    rows, out = subject.calibration(), work / "ours"
    config = BaqConfig(bits, dataset=rows, nsamples=len(rows), seqlen=subject.seqlen, **options)
    plain = subject.load()
    weights = sum(plain.get_submodule(name).weight.numel() for name in subject.targets(plain).names)
    start = time.time()
    subject.load(quantization_config=config).save_pretrained(out)
    seconds = time.time() - start
    return Quantized(subject.load(out), file_bits(out, weights), seconds)


def _shapes(weights: list[Tensor]) -> list[tuple[int, int]]:
    return [(len(weight), weight.shape[1]) for weight in weights]
