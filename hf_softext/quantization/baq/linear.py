"""A linear layer whose weight is bit planes."""

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_softext.quantization.baq.dequantized_matmul import (
    DequantizedMatmul,
    Layout,
    dequantized_matmul,
    output_parts,
)
from hf_softext.quantization.baq.grid import WIDTHS, width
from hf_softext.quantization.baq.lazy_weight import LazyWeight, refuse
from hf_softext.quantization.baq.packed_matmul import Packed, available, packed_matmul, repack
from hf_softext.quantization.baq.packing import (
    overhead_bits,
    pack,
    plane_bits,
    runs_of,
    unpack,
)
from hf_softext.quantization.baq.weight import QuantizedWeight

# a prompt is computed without the rounding of torch's kernel, which in time alone would win up to
# some 100 rows
_MANY_ROWS = 16


class BaqLinear(nn.Linear):
    """y = x W^T + b, with the columns of W at widths of 0 to 8 bits.

    Where a gradient is needed, from 16 rows on, and on every device but CPU, the weight is decoded
    part by part and multiplied with in the dtype of x. For fewer rows on CPU torch's int4 kernel is
    used, see `packed_matmul`: what it needs, some 4 bits a weight in memory, is made at the first
    such call. `SOFTEXT_PACKED=0` in the environment when a layer is made switches that off. A layer
    with a hook of accelerate, which moves its tensors about, keeps nothing beside them.

    x may have any floating dtype; under autocast it is cast as for `nn.Linear`. Gradients flow to x
    and, where it asks for them, the bias.

    Args:
        in_features: I.
        out_features: O.
        planes: P, rows of the bit planes.
        bias: whether there is one.
        zero_point: whether the grid passes through zero.
        dtype: of the bias, and of `weight`; the default dtype if not given.
        device: where, "meta" included.

    Attributes:
        planes: (P, ceil(O / 8)) uint8, see `packing`.
        levels: (I,) uint8, number of levels of each column, less one.
        ranges: (O, 1) int16, or (O, 2) if the grid passes through zero: in truth float16, which a
            cast of the model thus leaves alone.
        clip: (9,) int16: nine float16.
        bias: (O,), not trained unless asked to.
    """

    planes: Tensor
    levels: Tensor
    ranges: Tensor
    clip: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        planes: int,
        bias: bool = True,
        zero_point: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        # nn.Linear's own would make a weight
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.zero_point = zero_point
        self._dtype = dtype or torch.get_default_dtype()
        for name, shape, kind in (
            ("planes", (planes, plane_bits(out_features) // 8), torch.uint8),
            ("levels", (in_features,), torch.uint8),
            ("ranges", (out_features, 2 if zero_point else 1), torch.int16),
            ("clip", (WIDTHS,), torch.int16),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        empty = torch.zeros(out_features, dtype=self._dtype, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)  # type: ignore[assignment]
        self._packs = available() and os.environ.get("SOFTEXT_PACKED") != "0"
        self._layout: Layout | None = None
        self._packed: Packed | None = None

    @classmethod
    def from_weight(
        cls, weight: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> "BaqLinear":
        """The layer with a given weight.

        Args:
            weight: the codes.
            bias: (O,) or None; copied.
            dtype: of the bias and of `weight`.
        """
        planes = pack(weight.codes, weight.levels)
        rows, columns = weight.codes.shape
        made = cls(
            columns, rows, len(planes), bias is not None, weight.zero_point, dtype, planes.device
        )
        made.planes = planes
        made.levels = (weight.levels - 1).to(torch.uint8)
        made.ranges = weight.ranges.to(torch.float16).contiguous().view(torch.int16)
        made.clip = weight.clip.to(planes.device, torch.float16).view(torch.int16)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach().to(made._dtype, copy=True), requires_grad=False)
        made.check()
        return made

    def quantized(self) -> QuantizedWeight:
        """The weight as codes."""
        levels = self.levels.to(torch.int16) + 1
        codes = torch.empty(
            self.out_features, self.in_features, dtype=torch.uint8, device=self.planes.device
        )
        codes[:, levels.argsort(stable=True)] = unpack(self.planes, levels, self.out_features).T
        ranges, clip = self.ranges.view(torch.float16), self.clip.view(torch.float16)
        return QuantizedWeight(codes, levels, ranges, clip, self.zero_point)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight, (O, I), by default in the layer's own dtype."""
        dtype = dtype or self._dtype
        shape, device = (self.out_features, self.in_features), self.planes.device
        dense = torch.empty(shape, dtype=dtype, device=device)
        if dense.is_meta:
            return dense
        layout = self._prepared()
        order, ranges = self._order(layout), self.ranges.view(torch.float16)
        for outputs, part in output_parts(self.planes, ranges, layout, dtype):
            columns = part.new_zeros(shape[1], part.shape[1]).index_copy_(0, order, part)
            dense[outputs] = columns.T
        return dense

    def check(self) -> None:
        """Make sure that the tensors fit together; what is on the meta device is not looked at.

        Raises:
            ValueError: they do not.
        """
        if not self.levels.is_meta:
            counts = torch.bincount(self.levels.long().cpu(), minlength=256).tolist()
            needed = sum(width(less_one + 1) * count for less_one, count in enumerate(counts))
            if needed != len(self.planes):
                raise ValueError(
                    f"levels ask for {needed} planes, but planes has {len(self.planes)}."
                )
        for name in ("ranges", "clip"):
            tensor = getattr(self, name)
            if not tensor.is_meta and not tensor.view(torch.float16).isfinite().all():
                raise ValueError(f"{name} holds inf or NaN.")
        self._forget()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight, computed where it is used; see `LazyWeight`."""
        # a compiler sees plain tensors, and leaves out what is not used
        if torch.compiler.is_compiling():
            return self.dequantize()
        shape = (self.out_features, self.in_features)
        like = torch.empty(shape, dtype=self._dtype, device="meta")
        return LazyWeight(self.dequantize, like, self.planes.device)

    @weight.setter
    def weight(self, value: Any) -> None:
        refuse()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As for every module, but there can be no dense weight."""
        if name == "weight":
            refuse()
        super().register_parameter(name, param)

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`.

        Raises:
            ValueError: the last dimension is not `in_features`.
        """
        x, bias = input, self.bias
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: the last dimension has to be {self.in_features}."
            )
        if not x.is_floating_point():
            raise ValueError(f"input of dtype {x.dtype}: give floating point numbers.")
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if bias is None else bias.to(x.dtype)
        flat = x.reshape(-1, self.in_features)
        layout = self._prepared()
        learns = torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        )
        if not learns and 0 < len(flat) < _MANY_ROWS and self._may_pack(layout):
            y = packed_matmul(flat, self._repacked(), bias)
        else:
            live = flat.index_select(1, self._order(layout))
            ranges = self.ranges.view(torch.float16)
            product = DequantizedMatmul.apply if learns else dequantized_matmul
            y = product(live, bias, self.planes, ranges, layout)
        return y.view(*x.shape[:-1], self.out_features)

    def reset_parameters(self) -> None:
        """Nothing: there is no random weight."""

    def extra_repr(self) -> str:
        """Shape, and true bits of a weight."""
        rows, columns = self.out_features, self.in_features
        bits = len(self.planes) * plane_bits(rows) + overhead_bits(rows, columns, self.zero_point)
        return (
            f"in_features={columns}, out_features={rows}, bias={self.bias is not None}, "
            f"bits={bits / (rows * columns):.4g}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # a copy makes its own
        return self.__dict__ | {"_packed": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BaqLinear":
        def keep(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            # `Module.type` casts whole numbers too
            whole = made.dtype != tensor.dtype and not tensor.is_floating_point()
            return tensor.to(made.device) if whole else made

        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=self.planes.device)).dtype
        super()._apply(keep, recurse)
        self._packed = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _forget(self) -> None:
        """Make what follows from the tensors anew."""
        self._layout = self._packed = None
        if not self.levels.is_meta and not self.clip.is_meta:
            self._prepare()

    # a compiler runs these two while it traces, and goes on with what they have made

    @torch.compiler.assume_constant_result
    def _prepare(self) -> bool:
        if self._layout is None:
            clip = self.clip.view(torch.float16).tolist()
            runs = tuple(run for run in runs_of(self.levels.long() + 1) if run.width)
            factors = tuple(clip[run.width] for run in runs)
            self._layout = Layout(runs, factors, self.zero_point)
        return True

    @torch.compiler.assume_constant_result
    def _repack(self) -> bool:
        if self._packed is None:
            # what inference mode makes could not be used outside of it
            with torch.inference_mode(False), torch.no_grad():
                layout = self._prepared()
                ranges = self.ranges.view(torch.float16)
                self._packed = repack(
                    self.planes, ranges, self._order(layout), layout, self.in_features
                )
        return True

    def _prepared(self) -> Layout:
        if torch.compiler.is_compiling() or self._layout is None:
            self._prepare()
        return cast(Layout, self._layout)

    def _repacked(self) -> Packed:
        if torch.compiler.is_compiling() or self._packed is None:
            self._repack()
        return cast(Packed, self._packed)

    def _order(self, layout: Layout) -> Tensor:
        """The columns that are not zero, sorted as the planes are."""
        return self.levels.argsort(stable=True)[self.in_features - layout.columns :]

    def _may_pack(self, layout: Layout) -> bool:
        moves = hasattr(self, "_hf_hook") or torch.compiler.is_exporting()
        return self._packs and self.planes.device.type == "cpu" and bool(layout.runs) and not moves
