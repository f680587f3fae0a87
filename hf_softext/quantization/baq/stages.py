"""In which order the modules of a block are quantized, and which of them share an input.

Each module is fitted to the inputs that it will have, which are made by the quantized modules
before it: queries, keys and values first, then the output projection, then the feed-forward layers.
The experts of a block are all alike, and so their first layers are one stage and their last one.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """Modules that are quantized at the same time.

    Attributes:
        groups: names of modules that get the very same input; the first stands for all of them.
        single: whether there is one group, called once; when its input is there, a run can end.
    """

    groups: tuple[tuple[str, ...], ...]
    single: bool


def plan_stages(model: nn.Module, names: Sequence[str], run: Callable[[], None]) -> list[Stage]:
    """Watch one run of a block.

    Args:
        model: holds the modules.
        names: of the modules in question.
        run: runs the block.

    Returns:
        The stages in the order of execution; modules that were not called last.
    """
    places: dict[str, list[tuple]] = {}
    # inputs live on until the end, so that no other tensor can take their place in memory
    alive: list[Tensor] = []

    def watch(name: str, inputs: Tensor) -> None:
        alive.append(inputs)
        place = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype, inputs._version)
        places.setdefault(name, []).append(place)

    with watching(model, names, watch):
        run()
    groups: dict[tuple, list[str]] = {}
    for name, own in places.items():
        groups.setdefault(tuple(own), []).append(name)
    # by kind, as experts without a token belong to those that had some
    kinds: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for group in groups.values():
        kinds.setdefault(tuple(map(_kind, group)), []).append(tuple(group))
    for name in names:
        if name not in places:
            same = next((kind for kind in kinds if _kind(name) in kind), (_kind(name),))
            kinds.setdefault(same, []).append((name,))
    # how often a module is called may depend on a sequence's length
    chunked = getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0)
    place_of = {name: position for position, name in enumerate(names)}
    stages = []
    for members in kinds.values():
        members.sort(key=lambda group: place_of[group[0]])
        once = len(members) == 1 and all(len(places.get(one, ())) == 1 for one in members[0])
        once = once and not chunked
        stages.append(Stage(tuple(members), once))
    return stages


def _kind(name: str) -> str:
    """A name in which the numbers of experts do not count."""
    head, expert, tail = name.partition("expert")
    return head + expert + re.sub(r"\.\d+(?=\.|$)", ".*", tail)


def watching(
    model: nn.Module, names: Sequence[str], watch: Callable[[str, Tensor], None]
) -> ExitStack:
    """Have a function be told what each of some modules is given, inside a `with` block."""
    undo = ExitStack()
    for name in names:

        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], name: str = name) -> None:
            watch(name, args[0] if args else kwargs["input"])

        handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
        undo.callback(handle.remove)
    return undo
