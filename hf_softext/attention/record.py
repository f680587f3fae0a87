"""What a config says about attention: the block `config.softext` and the key that makes the choice
survive a save.

transformers strips its own record of the attention implementation when it writes `config.json`,
but it honours a key "attn_implementation" that it finds there. So every config that ran one of our
methods carries such a key, whose value is worked out when the config is written: whatever runs at
that moment.
"""

import warnings
from typing import Any

import torch

from hf_softext.catalog import find

BLOCK = "softext"
KEY = "attn_implementation"
# what transformers itself reads at every call
KEY_NOW = "_attn_implementation"

# what this process has warned about already
_WARNED: set[str] = set()


class RunningAttention:
    """A value for `config.attn_implementation` that is worked out when it is read.

    Serialising a config deep-copies its `__dict__`: there this object turns into the plain name
    that runs now (or a dict with one for each sub-config, if they differ). Copying the config
    itself keeps it, tied to the copy.
    """

    def __init__(self, config: Any):
        self.config = config

    def current(self) -> Any:
        """The name that runs now, as the key in `config.json` spells it."""
        return _running(self.config)

    def __deepcopy__(self, memo: dict) -> Any:
        copied = memo.get(id(self.config))
        return self.current() if copied is None else RunningAttention(copied)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, RunningAttention) and self.current() == other.current()

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return repr(self.current())


def sub_configs(config: Any) -> dict[str, Any]:
    """The sub-configs of a composite model that are present, by attribute name."""
    found = {key: getattr(config, key, None) for key in getattr(config, "sub_configs", {})}
    return {key: value for key, value in found.items() if value is not None}


def all_configs(config: Any) -> list[Any]:
    """A config and, recursively, its sub-configs."""
    return [config, *(deep for sub in sub_configs(config).values() for deep in all_configs(sub))]


def configs_of(target: Any) -> list[Any]:
    """Every config that a model's modules read, or a config and its sub-configs.

    Some models (T5, for one) give their parts copies of the config that no attribute leads to.
    """
    if not hasattr(target, "modules"):
        return all_configs(target)
    owners = [module.config for module in target.modules() if hasattr(module, "config")]
    found = [part for config in owners for part in all_configs(config)]
    return list({id(part): part for part in found if hasattr(part, KEY_NOW)}.values())


def _running(config: Any) -> Any:
    own = config._attn_implementation
    below = {key: _running(sub) for key, sub in sub_configs(config).items()}
    return own if all(name == own for name in below.values()) else {"": own, **below}


def write_block(config: Any, name: str, parameters: dict[str, Any]) -> None:
    """Write `config.softext` in full, so that a later default cannot change a saved model."""
    given = {key: value for key, value in parameters.items() if value is not None}
    setattr(config, BLOCK, {"attention": name, **given})


def write_blocks(target: Any, name: str, parameters: dict[str, Any]) -> None:
    """Write the block, and the record for a save, in every config of `target` that runs `name`."""
    for config in configs_of(target):
        if config._attn_implementation == name:
            write_block(config, name, parameters)
            setattr(config, KEY, RunningAttention(config))


def record_use(config: Any, name: str, parameters: dict[str, Any]) -> None:
    """Have a config that runs `name` say so when it is saved; warn at the first swap."""
    if config is None or isinstance(vars(config).get(KEY), RunningAttention):
        return
    if BLOCK not in vars(config):
        if getattr(config, "name_or_path", ""):
            warn_swap(config.name_or_path, name)
        write_block(config, name, parameters)
    setattr(config, KEY, RunningAttention(config))


def block_parameters(config: Any, name: str) -> dict[str, Any]:
    """The parameters that `config.softext` has for the method `name`.

    Raises:
        ValueError: the block is not a dict, or names an unknown method.
    """
    block = getattr(config, BLOCK, None)
    if block is None:
        return {}
    if not isinstance(block, dict):
        raise ValueError(
            f"config.{BLOCK} must be a dict like {{'attention': {name!r}}}, not {block!r}."
        )
    parameters = {key: value for key, value in block.items() if key != "attention"}
    written_for = block.get("attention", name)
    if written_for == name:
        return parameters
    other = find(written_for, "attention").load()
    if other.resolve(parameters) != other.resolve({}):
        _warn_once(
            f"config.{BLOCK} has parameters for {written_for!r}, but {name!r} runs: they are not "
            "used. "
            f"Call hf_softext.apply_attention(model, {name!r}) to settle it."
        )
    return {}


def warn_swap(source: str, name: str) -> None:
    """Say once in a process that pretrained weights now compute another function."""
    if "swap" not in _WARNED:
        _WARNED.add("swap")
        _warn_once(
            f"{name!r} replaces the attention that the weights of {source!r} were trained with, so "
            f"the outputs change until they are trained with it: "
            f"softext adopt {source} --attention {name} --data FILE"
        )


def _warn_once(message: str) -> None:
    if message not in _WARNED and not torch.compiler.is_compiling():
        _WARNED.add(message)
        # without a place in the source, so that it stays one line
        warnings.warn_explicit(message, UserWarning, "hf_softext", 1)
