"""The tuner: which modules become `SnnkAdapterLinear`, and what holds for all of them together."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear, linear_sizes
from hf_softext.adapters.snnk.targets import TARGETS


class SnnkModel(BaseTuner):
    """A model with SNNK adapters, as `peft.get_peft_model(model, SnnkConfig())` makes it.

    Everything that peft does with adapters that go into linear layers works; `add_weighted_adapter`
    does not exist, as a mean of weights is not a mean of functions here.
    """

    prefix: str = "snnk_"
    tuner_layer_cls = SnnkAdapterLinear
    target_module_mapping = TARGETS

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """As for every tuner; whether every layer can take them is asked before the first does."""
        self._check_every_layer(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_every_layer(adapter_names, safe_merge)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_every_layer(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        held = Counter(
            id(part)
            for module in self.modules()
            for part in (*module._modules.values(), *module._parameters.values())
        )
        for key, module in self.model.named_modules():
            if not isinstance(module, SnnkAdapterLinear):
                continue
            names = module.active_adapters if adapter_names is None else adapter_names
            here = [name for name in names if name in module.snnk_weight]
            new = [name for name in here if name not in module.merged_adapters]
            if not new:
                continue
            module.check_mergeable(new)
            base: Any = module.base_layer
            if max(held[id(base)], held[id(base.weight)]) > 1:
                raise ValueError(
                    f"the weight of {key} is that of another module too, which a merge would "
                    "change with it: keep the adapter beside the model, or give each module a "
                    "weight of its own first."
                )
            if safe_merge:
                module.merged_with(new, safe_merge)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        """As for every tuner, but what is missing or has no place is an error, not a warning."""
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        known = {key for key in model.state_dict() if f".{cls.prefix}" in key}
        missing = {key for key in known if key.endswith(f".{adapter_name}")} - found.keys()
        strange = {key for key in found if f".{cls.prefix}" in key} - known
        for what, keys in (("are not in the file", missing), ("have no place here", strange)):
            if keys:
                raise ValueError(
                    f"adapter {adapter_name!r}: {len(keys)} of its tensors {what}, such as "
                    f"{min(keys)}: load it on the model it was made for, with its own "
                    "adapter_config.json."
                )
        return found

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> PeftConfig:
        kind = model_config.get("model_type")
        if peft_config.target_modules is None and kind not in TARGETS:
            raise ValueError(
                f"Please specify `target_modules`: model type {kind!r} has no default ones. "
                f'Give names of linear layers or "all-linear". Known: {", ".join(TARGETS)}.'
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Everything that can be wrong is found before the first module is replaced."""
        peft_config.came_from = None
        if str(peft_config.target_modules).lower() == "all-linear":
            peft_config = _maybe_include_all_linear_layers(copy(peft_config), model)
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if not name or name.startswith(inside):
                continue
            if isinstance(module, BaseTunerLayer):
                inside += (f"{name}.",)
            if self._check_target_module_exists(peft_config, name):
                self._check_type(name, module)

    def _check_type(self, name: str, module: Any) -> None:
        try:
            linear_sizes(module)
        except TypeError as error:
            raise TypeError(f"target_modules, {name}: {error}") from None

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config: SnnkConfig = peft_config
        if isinstance(target, SnnkAdapterLinear):
            target.update_layer(adapter_name, config, current_key)
            return
        self._check_type(current_key, target)
        made = SnnkAdapterLinear(target, adapter_name, config, current_key)
        if adapter_name not in self.active_adapters:
            # one more adapter is not trained before it is chosen
            made.requires_grad_(False)
        self._replace_module(parent, target_name, made, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand `adapter_names=` of a call, a name for each sample, to every layer."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError(
                "Cannot pass `adapter_names` when the model is in training mode. Call model.eval()."
            )
        known = {
            name
            for one in self.modules()
            if isinstance(one, SnnkAdapterLinear)
            for name in one.snnk_weight
        }
        if unknown := sorted(map(str, set(names) - known - {"__base__"})):
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. Known: "
                f"{', '.join(sorted(known))}, and __base__ for none."
            )
        # so often does `generate` repeat each sample
        beams = max(kwargs.get("num_beams") or 1, kwargs.get("num_return_sequences") or 1)
        repeated = [name for name in names for _ in range(beams)]
        # the encoder of a sequence-to-sequence model runs before the beams
        encoder: set[nn.Module] = set()
        config = getattr(self.model, "config", None)
        if beams > 1 and getattr(config, "is_encoder_decoder", False):
            encoder = set(self.model.get_encoder().modules())
        handles = []
        try:
            for module in self.modules():
                if isinstance(module, SnnkAdapterLinear | AuxiliaryTrainingWrapper):
                    hook = partial(
                        _with_names, adapter_names=names if module in encoder else repeated
                    )
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _with_names(
    module: nn.Module, args: Any, kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"adapter_names": adapter_names}
