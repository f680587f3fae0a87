"""Adapters that are affine maps go into the weight of their layer, and come out bit for bit."""

import warnings
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.projection import FixedTensors


class MergeMixin(BaseTunerLayer):
    """`merge` and `unmerge` of an adapted layer.

    Parallel: $W + A$ with $A = \\mathrm{diag}(\\gamma) V G / \\sqrt{R}$. Serial: $(I + A) W$ and
    $(I + A) b$. Both in float32 at least; several adapters in their order.
    """

    base_layer: nn.Module
    snnk_config: dict[str, SnnkConfig]
    snnk_weight: nn.ParameterDict
    snnk_gate: nn.ParameterDict
    snnk_up: nn.ParameterDict
    snnk_up_bias: nn.ParameterDict
    snnk_projection: FixedTensors
    # weight and bias as they were: I + A need not have an inverse
    _unmerged: tuple[Tensor, Tensor | None] | None = None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put adapters into the weight of the base layer, which is kept for `unmerge`.

        Args:
            safe_merge: check the result for NaN and inf before anything is changed.
            adapter_names: which ones; by default those that are active.

        Raises:
            ValueError: an adapter or the layer cannot be merged, or the result is not finite. The
                weight is as it was.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.snnk_weight]
        if not names:
            return
        base = cast(nn.Linear, self.base_layer)
        weight, bias = self.merged_with(names, safe_merge)
        if self._unmerged is None:
            self._unmerged = base.weight.data, None if base.bias is None else base.bias.data
        base.weight.data = weight
        if bias is not None:
            base.bias.data = bias
        self.merged_adapters.extend(names)

    def merged_with(
        self, names: list[str], safe_merge: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the base layer with these adapters in them.

        Args:
            names: of adapters of this layer.
            safe_merge: check the result for NaN and inf.

        Raises:
            ValueError: as `merge`.
        """
        self.check_mergeable(names)
        base = cast(nn.Linear, self.base_layer)
        turned, dtype = isinstance(base, Conv1D), base.weight.dtype
        weight = base.weight.data.T if turned else base.weight.data
        weight = weight.to(torch.promote_types(dtype, torch.float32))
        bias = None if base.bias is None else base.bias.data.to(weight.dtype)
        for name in names:
            weight, bias = self._merged(name, weight, bias)
        weight = (weight.T if turned else weight).to(dtype).contiguous()
        bias = None if bias is None else bias.to(base.bias.dtype)
        for what, tensor in (("weights", weight), ("bias", bias)):
            # in the dtype of the layer, whose range may be smaller
            if safe_merge and tensor is not None and not tensor.isfinite().all():
                raise ValueError(
                    f"NaNs detected in the merged {what}, or infinity: one of the adapters "
                    f"{', '.join(names)} seems to be broken. Nothing was merged."
                )
        return weight, bias

    def unmerge(self) -> None:
        """Give the base layer back the weight that it had before the first merge."""
        if self._unmerged is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base, (weight, bias) = cast(nn.Linear, self.base_layer), self._unmerged
        # the model may have been cast or moved since
        base.weight.data = weight.to(base.weight.data)
        if bias is not None:
            base.bias.data = bias.to(base.bias.data)
        self._unmerged = None
        self.merged_adapters.clear()

    def check_mergeable(self, names: list[str]) -> None:
        """Make sure that these adapters can be merged.

        Raises:
            ValueError: they cannot.
        """
        for name in names:
            config = self.snnk_config.get(name)
            if config is not None and not config.mergeable:
                raise ValueError(
                    f"adapter {name!r} has kernel={config.kernel!r} and normalize="
                    f"{config.normalize!r}: it is not linear and cannot be merged. Keep it beside "
                    "the model, or train one with kernel='linear'."
                )
        base = self.base_layer
        if isinstance(base, BaseTunerLayer):
            raise ValueError(
                f"this layer has adapters of another kind below ({type(base).__name__}): unload "
                "those before these are merged."
            )
        weight = base._parameters.get("weight")
        # those of quantized and sharded layers are of classes of their own, or hold integers
        plain = type(weight) is nn.Parameter and type(weight.data) is Tensor
        if weight is None or not (plain and weight.is_floating_point()):
            raise ValueError(
                f"merging into the weight of a {type(base).__name__} is not supported: call "
                "model.dequantize() first, or keep the adapter beside the model."
            )
        for name in names:
            if base.bias is None and name in self.snnk_up_bias and self.snnk_up_bias[name].any():
                raise ValueError(
                    f"adapter {name!r} has a bias (down_sample), and a layer without one cannot "
                    "take it: keep the adapter beside the model."
                )

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What a parallel adapter adds to the weight: (O, I), or (I, O) for a Conv1D.

        Raises:
            ValueError: the adapter is not linear, or serial.
        """
        self.check_mergeable([adapter_name])
        if self.snnk_config[adapter_name].placement != "parallel":
            raise ValueError(
                f"adapter {adapter_name!r} is serial: it multiplies the weight and adds nothing."
            )
        delta = self._matrix(adapter_name)
        return delta.T if isinstance(self.base_layer, Conv1D) else delta

    def _matrix(self, name: str) -> Tensor:
        """A of an adapter that adds A h + u."""
        projection, weight = self.snnk_projection[name], self.snnk_weight[name].data
        dtype = torch.promote_types(weight.dtype, torch.float32)
        matrix = weight.to(dtype) @ projection.to(dtype) / len(projection) ** 0.5
        if name in self.snnk_gate:
            return self.snnk_gate[name].data.to(dtype)[:, None] * matrix
        return self.snnk_up[name].data.to(dtype) @ matrix

    def _merged(
        self, name: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight (O, I) and bias with one adapter more."""
        matrix = self._matrix(name).to(weight)
        if self.snnk_config[name].placement == "parallel":
            weight = weight + matrix
        else:
            weight = weight + matrix @ weight
            bias = None if bias is None else bias + matrix @ bias
        if bias is not None and name in self.snnk_up_bias:
            bias = bias + self.snnk_up_bias[name].data.to(weight)
        return weight, bias
