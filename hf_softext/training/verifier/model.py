"""The model behind an SDM head, as a program finds it."""

from typing import Any

import torch
from accelerate import PartialState

from hf_softext.training.pretrained import Source, pretrained_class


def load_backbone(source: str, config: Any, dtype: str, state: PartialState) -> Any:
    """A model as the class that its config names.

    Args:
        source: a folder or a hub id.
        config: of it.
        dtype: "auto" for the stored one.
        state: says on which device.

    Raises:
        ValueError: that class is none of transformers'.
    """
    kind = pretrained_class(source, config)
    device = state.device or torch.device("cpu")
    return Source(source, kind, dtype, None, {}, device).load()
