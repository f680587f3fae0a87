"""Checkpoints as the class of transformers that they are of."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from hf_softext.attention.apply import apply_attention
from hf_softext.attention.verify import verify_attention
from hf_softext.catalog import methods


def pretrained_class(source: str, config: Any) -> type[PreTrainedModel]:
    """The class that a checkpoint names, which must be one of transformers' own.

    Args:
        source: a hub id or a folder, for the message.
        config: its config.

    Raises:
        ValueError: it names no class of transformers.
    """
    name = (config.architectures or ["?"])[0]
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(
            f"model={source!r} is a {name}, which is not a model class of transformers."
        )
    return found


@dataclass(frozen=True)
class Source:
    """A checkpoint that is loaded more than once, the same way each time.

    Attributes:
        name: a hub id or a folder.
        kind: its class.
        dtype: to load it in, or "auto" for the stored one.
        attention: what it is to run on; None for what it has.
        parameters: of an attention of this package.
        device: where it goes.
    """

    name: str
    kind: type[PreTrainedModel]
    dtype: str
    attention: str | None
    parameters: dict[str, Any]
    device: torch.device

    def load(self, quantization_config: Any = None) -> Any:
        """The model, quantized on the way where that is asked for.

        Raises:
            ValueError: it ignores its attention implementation, and one was asked for.
        """
        given: dict[str, Any] = {"quantization_config": quantization_config}
        config = AutoConfig.from_pretrained(self.name)
        ours = self.attention in [row.name for row in methods("attention")]
        if ours:
            apply_attention(config, self.attention or "", **self.parameters)
        elif self.attention:
            given["attn_implementation"] = self.attention
        if self.device.type != "cpu":
            given["device_map"] = {"": self.device}
        model = self.kind.from_pretrained(self.name, config=config, dtype=self.dtype, **given)
        if ours:
            verify_attention(model)
        return model.eval()
