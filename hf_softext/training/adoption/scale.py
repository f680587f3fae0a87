"""The scale of the scores with which a swapped model starts closest to the original."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.record import write_blocks

# StableMax and softplus grow slower than exp, so that softmax's own scale is rarely the best
_FACTORS = [2 ** (step / 2) for step in range(-2, 7)]


def default_scale(method: AttentionMethod, modules: list[nn.Module]) -> float | None:
    """The scale that a method takes from the model, or None where its modules do not agree."""
    if method.cosine:
        dims = {
            getattr(m, name, None) for m in modules for name in ("head_dim", "attention_head_size")
        }
        found = {math.log(dim) for dim in dims if isinstance(dim, int) and dim > 1}
    else:
        found = {getattr(module, "scaling", None) for module in modules}
    scale = found.pop() if len(found) == 1 else None
    return scale if isinstance(scale, float) and scale > 0 else None


def calibrate_scale(
    model: Any,
    method: AttentionMethod,
    parameters: dict[str, Any],
    modules: list[nn.Module],
    loss: Callable[[], float],
) -> dict[str, Any]:
    """Try a few scales, half to eight times the default, and leave the best in the config.

    Args:
        model: already switched to the method.
        method: the method.
        parameters: its parameters; a given `scale` is left alone.
        modules: the attention modules that run it.
        loss: measures the model as it is.

    Returns:
        The parameters with the scale that was found.
    """
    base = default_scale(method, modules)
    if parameters["scale"] is not None or base is None:
        return parameters
    losses = {}
    for factor in _FACTORS:
        write_blocks(model, method.name, {**parameters, "scale": base * factor})
        losses[base * factor] = loss()
    best = {**parameters, "scale": min(losses, key=losses.__getitem__)}
    write_blocks(model, method.name, best)
    return best
