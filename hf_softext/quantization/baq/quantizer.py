"""BAQ as a quantization method of transformers."""

import copy
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.core_model_loading import build_glob_alternation, revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer

from hf_softext.quantization.baq.card import write_cards, write_no_cards
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.digests import checksums, verify
from hf_softext.quantization.baq.experts import fuse_experts, split_experts
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.size import weight_shape

# transformers.modeling_utils, once loaded, has this package registered: not before it is whole
if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BaqQuantizer(HfQuantizer):
    """Quantizes a model once its weights are loaded, and loads quantized checkpoints.

    The planes cannot be trained: a loss changes what is not quantized (norms, embeddings, head), as
    with every quantized model of transformers, and adapters. The Trainer refuses a quantized model
    without adapters.

    Attributes:
        reports: what became of each module, after quantizing; empty after loading.
        original_names: whether tensors are saved under the names of the model's own checkpoints.
    """

    requires_calibration = False
    quantization_config: BaqConfig

    def __init__(self, quantization_config: BaqConfig, **kwargs: Any):
        # ours to fill in; the caller's may serve for another model
        super().__init__(copy.deepcopy(quantization_config), **kwargs)
        self.reports: list[Any] = []
        self.original_names = True

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work before anything large is read.

        Raises:
            ValueError: no calibration data for a solver that needs some, a device map over several
                devices while quantizing, or a checkpoint whose config lists no modules.
        """
        config = self.quantization_config
        if self.pre_quantized:
            if not config.module_planes:
                raise ValueError(
                    "quantization_config in the model's config is of BAQ but lists no "
                    "module_planes: it is not of a saved checkpoint. To quantize a model, give "
                    "quantization_config=BaqConfig(...) to from_pretrained."
                )
            return
        if config.solver == "gptq" and config.dataset is None:
            raise ValueError(
                "dataset=None: solver='gptq' needs text to calibrate with. Give BaqConfig a path, "
                "a list of texts or of token ids, or a dataset; or use solver='rtn', which needs "
                "none."
            )
        if isinstance(device_map, dict):
            self._refuse_several(device_map)

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if not self.pre_quantized:
            return
        config = self.quantization_config
        config.module_planes = _as_named_in(model, config.module_planes)
        if checkpoint_files:
            verify(checkpoint_files, config.checksums)
            _compare(config.module_planes, checkpoint_files)
        config.checksums = None
        zero_point = config.allocation == "paper"
        for name, planes in config.module_planes.items():
            module = model.get_submodule(name)
            rows, columns = weight_shape(module)
            bias = module.bias is not None
            dtype = _dtype(model, f"{name}.weight")
            model.set_submodule(
                name, BaqLinear(columns, rows, planes, bias, zero_point, dtype, "meta")
            )

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        config = self.quantization_config
        if self.pre_quantized:
            for name, module in _quantized(model).items():
                _check(name, module)
            _check_blocks(model, config.module_planes)
        else:
            self._refuse_several(getattr(model, "hf_device_map", {}))
            # it needs datasets, which take a second to import, and loading does not
            from hf_softext.quantization.baq.calibrate import quantize_model

            self.reports = quantize_model(model, config, config.work_dir)
            config.module_planes = {
                name: len(module.planes) for name, module in _quantized(model).items()
            }
            config.dataset = config.tokenizer = config.work_dir = None
        write_cards(model)

    def _refuse_several(self, device_map: dict[str, Any]) -> None:
        if len(set(map(str, device_map.values()))) > 1 or "disk" in device_map.values():
            raise ValueError(
                f"device_map={device_map!r}: a model is quantized in the memory of one device. "
                "Quantize without device_map, save, and load what was saved with it."
            )

    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> tuple[None, dict[str, str]]:
        """Called when saving begins: the place to compute the checksums for `config.json`."""
        if not getattr(model, "_hf_peft_config_loaded", False):
            self.quantization_config.checksums = checksums(_as_saved(model, self.original_names))
        return None, {}

    def is_serializable(self) -> bool:
        """True."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: with adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True."""
        return True

    def _dequantize(self, model: "PreTrainedModel", dtype: torch.dtype | str | None = None):
        """Put plain layers back; `save_pretrained` then writes a plain checkpoint."""
        plain = _plain_classes(model)
        for name, module in _quantized(model).items():
            # adapters of peft hold the layer they adapt under this name
            kind = plain.get(name.replace(".base_layer", ""), nn.Linear)
            dense = _dense(module, kind)
            model.set_submodule(name, dense)
            holder: Any = model.get_submodule(name.rpartition(".")[0])
            if kind is Conv1D and hasattr(holder, "fan_in_fan_out"):
                holder.fan_in_fan_out = True
        fuse_experts(model)
        write_no_cards(model)
        # a config that was saved has the name of its dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if dtype not in (None, model.dtype):
            # model.to would also round what is computed, such as the rotary frequencies
            for tensor in model.state_dict(keep_vars=True).values():
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
        return model


def _quantized(model: nn.Module) -> dict[str, BaqLinear]:
    return {name: one for name, one in model.named_modules() if isinstance(one, BaqLinear)}


def _as_named_in(model: "PreTrainedModel", planes: dict[str, int]) -> dict[str, int]:
    """The modules by their names in this model, which may have a head more or less."""
    # as before they were quantized
    split_experts(model)
    prefix = f"{model.base_model_prefix}."
    layers = (nn.Linear, Conv1D)
    names = {name for name, module in model.named_modules() if isinstance(module, layers)}
    found = {}
    for name, count in planes.items():
        options = (name, prefix + name, name.removeprefix(prefix))
        here = next((option for option in options if option in names), None)
        if here is None:
            raise ValueError(
                f"{type(model).__name__} has no linear layer {name!r}, which module_planes of the "
                "checkpoint's config lists. Load it with the class from which it was saved."
            )
        found[here] = count
    return found


def _compare(planes: dict[str, int], files: Sequence[str]) -> None:
    """Check `module_planes` against the shapes in the files; names may differ, as MoE's do."""
    shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                if name.endswith(".planes"):
                    shapes[name.removesuffix(".planes")] = file.get_slice(name).get_shape()[0]
    said, stored = Counter(planes.values()), Counter(shapes.values())
    if said != stored:
        wrong = [name for name, count in planes.items() if shapes.get(name, count) != count]
        raise ValueError(
            f"module_planes of the checkpoint's config does not match its weights: {len(planes)} "
            f"modules with {sum(planes.values())} planes are listed, {len(shapes)} with "
            f"{sum(shapes.values())} stored{f', as {wrong[0]!r}' if wrong else ''}. Take "
            "config.json and weights from one checkpoint."
        )


def _dtype(model: "PreTrainedModel", name: str) -> torch.dtype:
    """What a weight would be loaded as: some models keep some in float32."""
    plan = model._get_dtype_plan(model.dtype)
    pattern, layers, _ = build_glob_alternation(list(plan))
    match = pattern.search(name) if plan else None
    return plan[layers[str(match.lastgroup)]] if match else model.get_parameter(name).dtype


def _check(name: str, module: BaqLinear) -> None:
    for key, tensor in module.state_dict(keep_vars=True).items():
        # offloaded tensors are on the meta device, and read when they are needed
        if not tensor.is_meta and not getattr(tensor, "_is_hf_initialized", False):
            raise ValueError(
                f"the checkpoint has no {name}.{key} of the shape that its config asks for. Take a "
                "fresh copy of the checkpoint."
            )
    try:
        module.check()
    except ValueError as error:
        raise ValueError(f"{name}: {error} Take a fresh copy of the checkpoint.") from error


def _check_blocks(model: "PreTrainedModel", planes: dict[str, int]) -> None:
    """Make sure that all weights of the blocks with quantized modules were in the checkpoint."""
    stacks = {re.split(r"\.\d+\.", f"{name}.")[0] + "." for name in planes}
    for name, weight in model.named_parameters():
        known = weight.is_meta or getattr(weight, "_is_hf_initialized", False)
        if not known and any(name.startswith(stack) for stack in stacks):
            raise ValueError(
                f"the checkpoint has no {name}: its config asks for other blocks than its weights "
                "are. Take config.json and weights from one checkpoint."
            )


def _as_saved(model: "PreTrainedModel", original_names: bool) -> dict[str, Tensor]:
    """The tensors by the names under which `save_pretrained` writes them."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    tensors = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        tensors.pop(name, None)
    tensors = remove_tied_weights_from_state_dict(tensors, model)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            tensors[name] = load_offloaded_parameter(model, name)
    return revert_weight_conversion(model, tensors) if original_names else tensors


def _plain_classes(model: "PreTrainedModel") -> dict[str, type[nn.Module]]:
    """What the architecture itself has under each name."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        shell = type(model)(config)
    return {name: type(module) for name, module in shell.named_modules()}


def _dense(module: BaqLinear, kind: type[nn.Module]) -> nn.Module:
    dtype = module.weight.dtype
    weight = module.dequantize(dtype)
    bias = module.bias
    rows, columns = weight.shape
    if kind is Conv1D:
        dense = Conv1D(rows, columns)
        dense.weight = nn.Parameter(weight.T.contiguous())
        dense.bias = nn.Parameter(torch.zeros(rows) if bias is None else bias.detach())
        return dense
    dense = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(weight)
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach())
    return dense
