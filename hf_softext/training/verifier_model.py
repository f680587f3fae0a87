"""The model behind an SDM head, as a program finds it."""

from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig

from hf_softext.training.causal_lm_model import load_tokenizer
from hf_softext.training.pretrained import Source, pretrained_class


def load_backbone(
    source: str, tokenizer: str | None, dtype: str, state: PartialState
) -> tuple[Any, Any]:
    """A model as the class that its config names, and its tokenizer.

    Args:
        source: a folder or a hub id.
        tokenizer: likewise; None: that of the model.
        dtype: "auto" for the stored one.
        state: says on which device.

    Raises:
        ValueError: that class is none of transformers'.
    """
    kind = pretrained_class(source, AutoConfig.from_pretrained(source))
    device = state.device or torch.device("cpu")
    model = Source(source, kind, dtype, None, {}, device).load()
    return model, load_tokenizer(tokenizer, source)
