"""The module that stands in for an adapted linear layer."""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.kernels import KERNELS
from hf_softext.adapters.snnk.merging import MergeMixin
from hf_softext.adapters.snnk.projection import Fingerprints, FixedTensors, draw, fingerprint
from hf_softext.functional.unit_rows import unit_rows
from hf_softext.functional.without_autocast import without_autocast

# of the random weight that V starts from, as in the authors' "bert" initialisation
_START_STD = 0.02


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """In and out features of a layer that can be adapted.

    Raises:
        TypeError: it is none.
    """
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    # an embedding or a convolution has other names; quantized layers need not derive from nn.Linear
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(module, NonDynamicallyQuantizableLinear) or not all(
        isinstance(size, int) for size in sizes
    ):
        raise TypeError(
            f"SNNK cannot adapt a {type(module).__name__}: target torch.nn.Linear, transformers' "
            "Conv1D, or a quantized layer with in_features and out_features (the out_proj of "
            "torch.nn.MultiheadAttention is never called, and so is none)."
        )
    return sizes  # type: ignore[return-value]


class SnnkAdapterLinear(MergeMixin, nn.Module, BaseTunerLayer):
    """A linear layer with SNNK adapters, see `SnnkConfig` for what they compute.

    Several active adapters act in their order: each serial one on what those before it have made.
    They compute in float32 (float64 where they are), and the sum is cast to the dtype of the
    layer's output once.

    Args:
        base_layer: what is adapted, or another tuner's layer around it.
        adapter_name: of the first adapter.
        config: of the first adapter.
        module_name: of the layer in the base model.

    Attributes:
        snnk_weight: V, (O, R), or (r, R).
        snnk_gate: (O,), of the gated adapters.
        snnk_up: U, (O, r), of the others.
        snnk_up_bias: u, (O,), of the others.
        snnk_projection: G, (P, D), float32, not trained.
        snnk_fingerprint: (P,), where G is not saved.

    Raises:
        TypeError: a layer of that type cannot be adapted.
    """

    adapter_layer_names = ("snnk_weight", "snnk_gate", "snnk_up", "snnk_up_bias")
    other_param_names = ("snnk_projection", "snnk_fingerprint", "snnk_config")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SnnkConfig, module_name: str
    ):
        super().__init__()
        self.in_features, self.out_features = linear_sizes(base_layer)
        self.base_layer = base_layer
        self.snnk_weight = nn.ParameterDict()
        self.snnk_gate = nn.ParameterDict()
        self.snnk_up = nn.ParameterDict()
        self.snnk_up_bias = nn.ParameterDict()
        self.snnk_projection = FixedTensors()
        self.snnk_fingerprint = Fingerprints()
        self.snnk_config: dict[str, SnnkConfig] = {}
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, module_name)

    def update_layer(self, adapter_name: str, config: SnnkConfig, module_name: str) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: what it computes.
            module_name: of the layer in the base model.
        """
        kernel, width = KERNELS[config.kernel], self.out_features
        if config.placement == "parallel":
            width = self.in_features
        rows = config.num_features // kernel.parts
        projection = draw(rows, width, config.projection_seed, module_name, config.orthogonal)
        self.snnk_projection.put(adapter_name, projection, config.save_projection)
        if not config.save_projection:
            self.snnk_fingerprint.put(adapter_name, fingerprint(projection), True)
        outputs = config.down_sample or self.out_features
        # everything on the CPU, and read before peft may put it on the meta device
        weight = kernel.start(outputs, projection, config.floor, _START_STD)

        def readout(*shape: int) -> nn.Parameter:
            values = torch.zeros(shape, dtype=torch.float32, device="cpu")
            return nn.Parameter(values if config.init_weights else values.normal_())

        self.snnk_config[adapter_name] = config
        self.snnk_weight[adapter_name] = nn.Parameter(weight)
        if config.down_sample is None:
            self.snnk_gate[adapter_name] = readout(self.out_features)
        else:
            self.snnk_up[adapter_name] = readout(self.out_features, config.down_sample)
            self.snnk_up_bias[adapter_name] = readout(self.out_features)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(
        self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """What the base layer puts out, and what the active adapters make of it.

        Args:
            x: (..., I).
            *args: for the base layer.
            adapter_names: for each sample of the batch its adapter, or "__base__" for none.
            **kwargs: for the base layer.

        Raises:
            ValueError: `adapter_names` does not have a name for each of the B samples, or adapters
                are merged.
        """
        if adapter_names is not None:
            self._check_names(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        if adapter_names is not None:
            return self._each_its_own(x, y, adapter_names)
        made = y
        for name in self.active_adapters:
            if name in self.snnk_weight:
                made = made + self._change(name, x, made)
        return made.to(y.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter is a matrix added to the weight."""
        config = self.snnk_config[adapter_name]
        return config.mergeable and config.placement == "parallel" and config.down_sample is None

    def _change(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """What an adapter adds."""
        config, weight = self.snnk_config[name], self.snnk_weight[name]
        h = x if config.placement == "parallel" else y
        h = self._cast_input_dtype(h, torch.promote_types(weight.dtype, torch.float32))
        if config.length is not None:
            h = unit_rows(h) * config.length
        projection = self.snnk_projection[name].to(h.dtype)
        if not weight.device == projection.device == h.device:
            # torch need not notice, and then reads memory that is not there
            raise ValueError(
                f"adapter {name!r} is on {weight.device}, its projection on {projection.device}, "
                f"and its input on {h.device}: move the whole model to one device, without "
                "offloading. A model that has been on the meta device gets its projections from a "
                "checkpoint with save_projection=True."
            )
        # which would round the projection, in training only
        with without_autocast(h):
            features = KERNELS[config.kernel].features(h, projection, config.floor)
            read = F.linear(features, weight.to(h.dtype))
            if config.down_sample is None:
                return read * self.snnk_gate[name].to(h.dtype)
            up, bias = self.snnk_up[name].to(h.dtype), self.snnk_up_bias[name].to(h.dtype)
            return F.linear(read, up, bias)

    def _check_names(self, x: Tensor, adapter_names: list[str]) -> None:
        if len(x) != len(adapter_names):
            # each of these begins as peft's own for LoRA
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively: give one for each sample; a "
                "module that does not see the batch first cannot be adapted sample by sample."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                f"`unmerge_adapter` first. Merged: {', '.join(self.merged_adapters)}."
            )

    def _each_its_own(self, x: Tensor, y: Tensor, adapter_names: list[str]) -> Tensor:
        made = y
        for name in dict.fromkeys(adapter_names):
            if name in self.snnk_weight:
                rows = [row for row, given in enumerate(adapter_names) if given == name]
                index = torch.tensor(rows, device=y.device)
                changed = y[index] + self._change(name, x[index], y[index])
                made = made.index_copy(0, index, changed.to(y.dtype))
        return made

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        # peft would cast them to the dtype of the base layer too
        if device is not None and device.type != "meta":
            self.snnk_projection.move(adapter_name, device)
            self.snnk_fingerprint.move(adapter_name, device)

    def __repr__(self) -> str:
        return "snnk." + super().__repr__()
