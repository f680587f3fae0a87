"""Configs of peft's adapters, by name and keywords."""

import dataclasses
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from hf_softext.catalog import did_you_mean

# what training them takes beyond the gradient of a loss
_NOT_HERE = {
    "adalora": "a call after every step, which no Trainer makes",
    "adamss": "a call after every step, which no Trainer makes",
    "cpt": "a loss of its own",
    "cartridge": "a training of its own",
    "shadow": "a second loss, from inside the model",
    "multitask_prompt_tuning": "the task of every row",
    "poly": "the task of every row",
    "xlora": "adapters that are trained already",
}
# what is set of an adapter first
_MOST_USED = {
    "snnk": ("num_features", "kernel", "placement", "target_modules"),
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules"),
    "vera": ("r", "vera_dropout", "target_modules"),
    "ia3": ("target_modules", "feedforward_modules"),
    "prefix_tuning": ("num_virtual_tokens",),
    "prompt_tuning": ("num_virtual_tokens",),
    "p_tuning": ("num_virtual_tokens",),
}
# known from the rest of the arguments, or written by peft itself
_OURS = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
}


def adapter_names() -> list[str]:
    """The adapters that can be trained by name: those of peft, and snnk."""
    found = (member.value.lower() for member in PEFT_TYPE_TO_CONFIG_MAPPING)
    return sorted(name for name in found if name not in _NOT_HERE)


def adapter_config(name: str, keywords: dict[str, Any], **more: Any) -> PeftConfig:
    """The config of an adapter.

    Args:
        name: such as "snnk" or "lora"; peft's name of the type, in any case.
        keywords: of its config.
        **more: what is known otherwise, as `task_type`.

    Returns:
        A new config.

    Raises:
        ValueError: an unknown name or keyword (the nearest known one is suggested), an adapter
            that a loss by name cannot train, or a value that its config refuses.
    """
    known = adapter_names()
    name = str(name).lower()
    if name in _NOT_HERE:
        raise ValueError(
            f"adapter={name!r} needs {_NOT_HERE[name]}: train it with peft itself, or take one of "
            f"{', '.join(known)}."
        )
    if name not in known:
        raise ValueError(f"adapter={name!r} is unknown.{did_you_mean(name, known)}")
    kinds = {member.value.lower(): kind for member, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind: Any = kinds[name]
    options = [one.name for one in dataclasses.fields(kind) if one.init]
    for key in keywords:
        if key in _OURS:
            raise ValueError(f"adapter_kwargs: {key!r} follows from the other arguments.")
        if key not in options:
            raise ValueError(f"adapter_kwargs: {name} has no {key!r}.{_hint(name, key, options)}")
    try:
        config = kind(**keywords, **more)
    except (TypeError, ValueError) as error:
        raise ValueError(f"adapter={name!r}, adapter_kwargs={keywords!r}: {error}") from error
    if config.is_prompt_learning and getattr(config, "num_virtual_tokens", 0) is None:
        raise ValueError(
            f"adapter={name!r} needs keywords: give adapter_kwargs such as "
            '{"num_virtual_tokens": 20}.'
        )
    return config


def _hint(name: str, key: str, options: list[str]) -> str:
    """What may have been meant, what is mostly given, and all there is."""
    used = _MOST_USED.get(name, ())
    known = [one for one in options if one not in _OURS]
    # "rank" is nearer to "r" than a comparison of letters says
    begins = next((one for one in used if key.startswith(one)), None)
    hint = did_you_mean(key, known)
    if begins is not None:
        hint = f" Did you mean {begins!r}? Known:{hint.partition(' Known:')[2]}"
    return (f" Most used: {', '.join(used)}." if used else "") + hint
