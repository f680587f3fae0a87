"""Choose an attention method, with its parameters, for a model or a config."""

import warnings
from typing import Any, TypeVar

from hf_softext.attention._base import BaseAttention
from hf_softext.attention.record import BLOCK, configs_of, warn_swap, write_blocks
from hf_softext.catalog import find

Target = TypeVar("Target")


def apply_attention(model: Target, name: str, **parameters: Any) -> Target:
    """Run a model on an attention method, and have every save of it say so.

    Args:
        model: a transformers model, changed in place; or a config, for `from_pretrained(...,
            config=config)` and `from_config(config)`.
        name: "softplus", "softplus_reweighted", "stablemax", "soft" or "soft_norm".
        **parameters: the method's parameters; `softext info NAME` lists them with their ranges.

    Returns:
        `model`, so that calls can be chained.

    Raises:
        ValueError: an unknown name or parameter (the nearest known one is suggested), a value out
            of range, head dim 1 with cosine scores, or a model class that does not look attention
            up in transformers' registry. Nothing is changed then.

    Example:
        ```python
        model = AutoModelForCausalLM.from_pretrained("any/llama")
        hf_softext.apply_attention(model, "softplus_reweighted", power=3)
        model.save_pretrained("out")          # from_pretrained("out") runs the same attention
        ```
    """
    method: BaseAttention = find(name, "attention").load()
    resolved = method.resolve(parameters)
    is_model = hasattr(model, "set_attn_implementation")
    config: Any = model.config if is_model else model  # pyright: ignore[reportAttributeAccessIssue]
    if not hasattr(config, "_attn_implementation"):
        raise ValueError(
            f"model must be a transformers model or config, not {type(model).__name__}."
        )
    for part in configs_of(model):
        if "convert_to_soft" in (getattr(part, BLOCK, None) or {}):
            raise ValueError(
                "model was made by convert_to_soft, whose modules have no other attention: apply "
                f"{name!r} to the model that it was made from."
            )
        method.check_head_dim(_head_dim(part), resolved)

    before = config._attn_implementation
    if is_model:
        _switch(model, name)
    else:
        config._attn_implementation = name
    write_blocks(model, name, resolved)
    if before != name and getattr(config, "name_or_path", ""):
        warn_swap(config.name_or_path, name)
    return model


def _switch(model: Any, name: str) -> None:
    # transformers reads it off the source of the class; a class that ignores the registry may have
    # been given the name all the same, at construction
    settable = getattr(model, "_can_set_attn_implementation", lambda: True)()
    if settable:
        # the parts as well: older transformers leave out those with a config of their own (T5)
        for part in model.modules():
            if (
                hasattr(part, "set_attn_implementation")
                and part.config._attn_implementation != name
            ):
                part.set_attn_implementation(name)
    if not settable or model.config._attn_implementation != name:
        raise ValueError(
            f"{type(model).__name__} does not look its attention up in transformers' "
            f"AttentionInterface, so {name!r} would have no effect."
        )
    left = {
        type(part).__name__
        for part in model.modules()
        if hasattr(part, "set_attn_implementation") and part.config._attn_implementation != name
    }
    if left:
        warnings.warn(
            f"{', '.join(sorted(left))} inside {type(model).__name__} keep an attention of their "
            f"own: they do not look it up in transformers' AttentionInterface.",
            UserWarning,
            stacklevel=3,
        )


def _head_dim(config: Any) -> int:
    """The head dim that a config states, or 2 (which passes) where it states none."""
    explicit = getattr(config, "head_dim", None)
    if isinstance(explicit, int):
        return explicit
    hidden, heads = (getattr(config, key, None) for key in ("hidden_size", "num_attention_heads"))
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 2
