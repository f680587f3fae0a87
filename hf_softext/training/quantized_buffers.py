"""Quantized weights under data parallel training."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_softext.quantization.baq.linear import BaqLinear


def leave_to_files(model: nn.Module) -> None:
    """Have data parallel processes send each other no quantized weight.

    They have all read the same file, would do it before every step, and cannot: gloo and NCCL know
    no uint16.

    Args:
        model: not yet wrapped; without quantized layers nothing happens.
    """
    quantized = (item for item in model.named_modules() if isinstance(item[1], BaqLinear))
    names = [f"{name}.{buffer}" for name, part in quantized for buffer, _ in part.named_buffers()]
    if names:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
