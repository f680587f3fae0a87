"""A causal language model of any type, from scratch or from a checkpoint, on a chosen attention."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_softext.attention.apply import apply_attention
from hf_softext.attention.verify import verify_attention
from hf_softext.catalog import did_you_mean, find, methods
from hf_softext.training.causal_lm.byte_tokenizer import byte_tokenizer
from hf_softext.training.model_hook import ModelHook

# tokens in a training window, by default
LENGTH = 1024


def load_tokenizer(tokenizer: str | None, model: str | None) -> Any:
    """A tokenizer: "bytes", a hub id or a folder; by default the model's own, else "bytes"."""
    if tokenizer == "bytes" or (tokenizer is None and model is None):
        return byte_tokenizer()
    return AutoTokenizer.from_pretrained(tokenizer or model)


def fresh_config(
    model_type: str,
    config: str | None,
    overrides: dict[str, Any],
    tokenizer: Any,
    longest: int,
) -> PreTrainedConfig:
    """The config of a model that is to be trained from scratch.

    Args:
        model_type: such as "llama"; sizes that are not given are transformers' defaults.
        config: a config file, a folder or a hub id, instead of `model_type`.
        overrides: sizes and whatever else the config has.
        tokenizer: gives the special tokens, and with `model_type` the size of the vocabulary.
        longest: tokens in the longest window, for a config made from `model_type` that says how
            many positions there are.

    Returns:
        The config; derived values follow the overrides.

    Raises:
        ValueError: an unknown model type or key, or a vocabulary that is too small.
    """
    given = dict(overrides)
    if config is not None:
        raw, _ = PreTrainedConfig.get_config_dict(config)
        model_type = raw.pop("model_type", None) or ""
    else:
        raw = {}
    known = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if model_type not in known:
        hint = did_you_mean(str(model_type), known).split(" Known:")[0]
        raise ValueError(
            f"model_type={model_type!r} is no causal language model of transformers.{hint}"
        )
    default = AutoConfig.for_model(model_type)
    keys = [*default.to_dict(), *default.attribute_map]
    for name in given:
        if name not in keys:
            hint = did_you_mean(name, keys).split(" Known:")[0]
            raise ValueError(f"config_overrides: a {model_type} config has no {name!r}.{hint}")
    if config is None:
        given.setdefault("vocab_size", len(tokenizer))
        if hasattr(default, "max_position_embeddings"):
            given.setdefault("max_position_embeddings", longest)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given.setdefault(name, getattr(tokenizer, name))
    made = AutoConfig.for_model(model_type, **{**raw, **given})
    size = made.get_text_config().vocab_size
    if size < len(tokenizer):
        raise ValueError(
            f"the model's vocab_size={size} is below the tokenizer's {len(tokenizer)}: "
            "set it in config_overrides, or choose another tokenizer."
        )
    return made


def check_attention(name: str | None, parameters: dict[str, Any]) -> None:
    """Raise ValueError for an attention that cannot be meant; the nearest known one is named."""
    ours = [row.name for row in methods("attention")]
    if name in ours:
        find(name, "attention").load().resolve(parameters)
        return
    others = ["eager", *AttentionInterface._global_mapping]
    if name is not None and name not in others:
        hint = did_you_mean(name, [*ours, *others]).split(" Known:")[0]
        raise ValueError(
            f"attention={name!r} is unknown.{hint} This package has {', '.join(ours)}; "
            "sdpa and eager are softmax."
        )
    if parameters:
        raise ValueError(
            f"attention_parameters={parameters!r} are for the methods of this package, and "
            f"attention={name!r}."
        )


def set_attention(model: Any, name: str | None, parameters: dict[str, Any]) -> None:
    """Run a model on an attention by name; None leaves what it has.

    Raises:
        ValueError: an unknown name or parameter, or a model that ignores its attention
            implementation.
    """
    check_attention(name, parameters)
    if name in [row.name for row in methods("attention")]:
        apply_attention(model, name, **parameters)
        report = verify_attention(model)
        if report.bypassed:
            warnings.warn(f"{report}; what they compute stays as it is.", UserWarning, stacklevel=2)
    elif name is not None:
        model.set_attn_implementation(name)


def load_model(source: str, hook: ModelHook) -> tuple[Any, torch.dtype]:
    """A checkpoint in float32, and the dtype that it was stored in."""
    stored = AutoConfig.from_pretrained(source).dtype
    model = hook.load(AutoModelForCausalLM, source, dtype=torch.float32)
    return model, stored if isinstance(stored, torch.dtype) else torch.float32


def default_length(source: str | None, overrides: dict[str, Any]) -> int:
    """Tokens in a window where nothing is said: 1024, or the model's positions if these are fewer.

    Args:
        source: a config or a checkpoint: a file, a folder or a hub id; None: a model of its type's
            sizes, which gets as many positions as it needs.
        overrides: of its config.
    """
    limit = overrides.get("max_position_embeddings")
    if limit is None and source is not None:
        limit = getattr(_text_config(source), "max_position_embeddings", None)
    return min(LENGTH, limit or LENGTH)


def _text_config(source: str) -> Any:
    return AutoConfig.from_pretrained(source).get_text_config()


def last_position(model: Any) -> int | None:
    """How many positions a model has a learned vector for; None where positions are computed."""
    limit = getattr(model.config, "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    # a table may have a few rows before the first position (OPT)
    learned = limit is not None and any(
        isinstance(module, nn.Embedding) and limit <= module.num_embeddings <= limit + 8
        for module in model.modules()
        if module is not tokens
    )
    return limit if learned else None


def describe_source(source: str) -> str:
    """A hub id as it is; of a folder its name, as a path means nothing elsewhere."""
    return Path(source).name if Path(source).exists() else source
