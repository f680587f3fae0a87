"""How many numbers an adapter trains on a model, before one is made."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

from peft import get_peft_model
from torch import nn

from hf_softext.adapters.snnk.layer import SnnkAdapterLinear


@dataclass(frozen=True)
class AdapterSize:
    """What an adapter adds to a model.

    Attributes:
        modules: layers that it goes into, of those that SNNK adapts; 0 for other methods.
        trained: its parameters, without those of modules that are saved in full.
        fixed: numbers of its projections, which are saved with it unless `save_projection=False`.
    """

    modules: int
    trained: int
    fixed: int


def adapter_size(model: nn.Module, config: Any) -> AdapterSize:
    """Count what an adapter of peft adds to a model.

    Args:
        model: as it is before; a copy of it is adapted. On the meta device no weight is read or
            made.
        config: an `SnnkConfig`, or that of another method, to compare with.

    Returns:
        The counts.

    Raises:
        ValueError: no layer of the model is a target.
        TypeError: one of them is none that can be adapted.
    """
    with warnings.catch_warnings():
        # of peft about names that transformers has given up
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
    prefix = adapted.base_model.prefix
    trained = (p.numel() for key, p in adapted.named_parameters() if prefix in key)
    layers = [layer for layer in adapted.modules() if isinstance(layer, SnnkAdapterLinear)]
    fixed = sum(buffer.numel() for layer in layers for buffer in layer.snnk_projection.buffers())
    return AdapterSize(len(layers), sum(trained), fixed)
