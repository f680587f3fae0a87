"""Operators whose derivative exists in reverse mode only say so in forward mode."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def reverse_only(name: str, instead: str, *tensors: Tensor) -> None:
    """Raise where a tensor carries a tangent, which a registered operator would silently drop.

    Args:
        name: of the function that was called.
        instead: the way out.
        tensors: its inputs.

    Raises:
        NotImplementedError: one of them is a dual tensor of `torch.autograd.forward_ad`, as under
            `torch.func.jvp` and `jacfwd`.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(f"{name} has no forward-mode derivative: use {instead}.")
