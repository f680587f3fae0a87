"""Which layers of a model are quantized: the linear ones inside its repeated blocks.

Nearly all weights of a transformer lie in stacks of like blocks (`model.layers`, `encoder.layer`,
`transformer.h`, T5's `encoder.block` and `decoder.block`). What lies outside, embeddings and heads
above all, is small or sensitive and stays as it is.
"""

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

_GATE = re.compile(r"\b(shared_expert_)?gate$|\bwg$")


@dataclass(frozen=True)
class Block:
    """One block of a stack.

    Attributes:
        name: of the module.
        modules: full names of those in it that are quantized, in the order of their definition.
    """

    name: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other. Where a whole model counts as one block, its own name
    is also the block's.
    """

    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Targets:
    """What is quantized.

    Attributes:
        stacks: the stacks of blocks, in the order of their definition.
        left_out: the linear modules and fused weights that stay as they are, each with the reason.
    """

    stacks: tuple[Stack, ...]
    left_out: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The full names of all modules that are quantized."""
        return [name for stack in self.stacks for block in stack.blocks for name in block.modules]


def find_targets(model: nn.Module, modules_to_not_convert: list[str] | None = None) -> Targets:
    """Find the modules of a model that are quantized.

    They are the `torch.nn.Linear` and `transformers` `Conv1D` in repeated blocks: the outermost
    ModuleLists whose entries are of one family of classes, inside the model's base. A model without
    such a list is one block, without its output embeddings.

    Args:
        model: any model; its weights are not looked at and may be on the meta device.
        modules_to_not_convert: names, ends of names or regular expressions of modules that stay as
            they are, as transformers reads them.

    Raises:
        ValueError: nothing is left to quantize.
    """
    # under every name, also those that stand for the same module
    named = (module for _, module in model.named_modules(remove_duplicate=False))
    uses = Counter(map(id, filter(lambda one: one is not None, map(_weight, named))))
    linears = {name: module for name, module in model.named_modules() if _is_linear(module)}
    base = _base_prefix(model)
    lists = [name for name in _stack_names(model) if name.startswith(base)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    left_out, kept = {}, []
    for name, module in linears.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        weight = _weight(module)
        if lists and not any(name.startswith(f"{one}.") for one in lists):
            left_out[name] = "outside the repeated blocks"
        elif not lists and (module is head or not name.startswith(base)):
            left_out[name] = "output head"
        elif not should_convert_module(name, modules_to_not_convert):
            left_out[name] = "named by modules_to_not_convert"
        elif weight is None or not weight.is_floating_point() or weight.dim() != 2:
            left_out[name] = "already quantized"
        elif uses[id(weight)] > 1:
            left_out[name] = "shares its weight with another module"
        elif isinstance(parent, nn.MultiheadAttention):
            left_out[name] = "torch.nn.MultiheadAttention reads its weight without calling it"
        elif "router" in name.split(".") or (_GATE.search(name) and _has_experts(parent)):
            left_out[name] = "router of experts"
        else:
            kept.append(name)
    left_out |= _fused(model)
    if not kept:
        reasons = Counter(left_out.values())
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none at all"
        raise ValueError(
            f"{type(model).__name__} has nothing to quantize: looked for torch.nn.Linear and "
            f"Conv1D in ModuleLists of like blocks and left out what there is ({found})."
        )
    if not lists:
        return Targets(
            (Stack(base.rstrip("."), (Block(base.rstrip("."), tuple(kept)),)),), left_out
        )
    stacks = []
    for one in lists:
        children = [f"{one}.{index}" for index, _ in model.get_submodule(one).named_children()]
        blocks = [
            Block(child, tuple(name for name in kept if name.startswith(f"{child}.")))
            for child in children
        ]
        if any(block.modules for block in blocks):
            stacks.append(Stack(one, tuple(blocks)))
    return Targets(tuple(stacks), left_out)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _weight(module: nn.Module) -> nn.Parameter | None:
    # a quantized module may compute its `weight`: look at real parameters only
    return module._parameters.get("weight")


def _base_prefix(model: nn.Module) -> str:
    """Names of what is no head begin with it; heads too are lists of like modules at times."""
    base = getattr(model, "base_model", model)
    return next((f"{name}." for name, module in model.named_children() if module is base), "")


def _stack_names(model: nn.Module) -> list[str]:
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{one}.") for one in found)
        if isinstance(module, nn.ModuleList) and not inside and _is_stack(module):
            found.append(name)
    return found


def _is_stack(entries: nn.ModuleList) -> bool:
    if any(map(_is_linear, entries)):
        return False
    families = [set(type(entry).__mro__) for entry in entries]
    if not families or not set.intersection(*families) - set(nn.Module.__mro__):
        return False
    return any(_is_linear(module) for module in entries.modules())


def _has_experts(module: nn.Module) -> bool:
    return any("expert" in child for child, _ in module.named_children())


def _fused(model: nn.Module) -> dict[str, str]:
    """Weights of several experts in one parameter, which are no linear modules."""
    return {
        f"{name}.{own}" if name else own: "fused weights of a kind that cannot be split"
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for own, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3 and min(parameter.shape) > 1
    }
