"""The dense weight of a quantized layer, for code that reads `layer.weight`."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def refuse() -> NoReturn:
    """Say that a quantized weight cannot be changed.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        "merging into a quantized weight is not supported: call model.dequantize() first"
    )


class LazyWeight(Tensor):
    """A weight that is decoded anew in every operation that takes it, and cannot be written to.

    Its shape, dtype and device cost nothing. What is computed from it are plain tensors, but its
    views, which cannot be written to either. An operation that autograd records keeps this and no
    dense weight.

    Args:
        decode: makes the dense weight.
        like: of the same shape, strides, dtype and device; may be on the meta device.
        device: where `decode` makes it.
    """

    _decode: Callable[[], Tensor]
    # transformers does not fill it with random numbers
    _is_hf_initialized = True

    @staticmethod
    def __new__(cls, decode: Callable[[], Tensor], like: Tensor, device: torch.device):
        """A tensor without memory."""
        made = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        made._decode = decode
        return made

    # the functions of torch come to `__torch_dispatch__` only
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = zip(func._schema.arguments, args, strict=False)
        named = ((one, kwargs[one.name]) for one in func._schema.arguments if one.name in kwargs)
        for argument, value in (*given, *named):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and any(isinstance(one, cls) for one in tree_leaves(value)):
                refuse()

        def plain() -> Any:
            return func(
                *tree_map_only(cls, cls.dense, args), **tree_map_only(cls, cls.dense, kwargs)
            )

        returns = func._schema.returns
        if len(returns) == 1 and returns[0].alias_info is not None and isinstance(args[0], cls):
            own = args[0]
            meta = torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device="meta")
            return cls(plain, func(meta, *args[1:], **kwargs), own.device)
        return plain()

    def dense(self) -> Tensor:
        """The weight itself."""
        return self._decode()

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """Itself, as it needs no gradient."""
        return self

    @data.setter
    def data(self, value: Any) -> None:
        refuse()

    def numpy(self, *, force: bool = False) -> Any:
        """As of the dense weight."""
        return self.dense().numpy(force=force)

    def tolist(self) -> Any:
        """As of the dense weight."""
        return self.dense().tolist()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.dense()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(self.dense())
