"""The adapters that `adapters.py` compares, and how one is put into a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear

HEAD = "head alone"
# names of linear layers by where they are: what attention and the feed-forward block put out,
# queries and values, all
OUTPUTS, QUERIES, ALL = "outputs", "q, v", "all linear"


@dataclass(frozen=True)
class Method:
    """An adapter and its settings.

    Attributes:
        label: unique.
        family: that it is drawn and counted with.
        centre: of the grid of learning rates, in half decades: -4 is 0.01.
        sites: OUTPUTS, QUERIES or ALL.
        options: of its config; the width of a bottleneck.
        start: of SNNK: "features" as `SnnkConfig` has it; a number, the same with that standard
            deviation of the random weight; "zero" for V = 0 and a gate of 1; "normal" for V of
            standard normal numbers.
        gate: of SNNK: the gate's learning rate over that of V.
    """

    label: str
    family: str
    centre: int
    sites: str = OUTPUTS
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | float = "features"
    gate: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """What a row of the CSV says of it."""
        said: dict[str, Any] = {"sites": self.sites, **self.options}
        if self.family.startswith("SNNK"):
            said |= {"start": self.start, "gate": self.gate}
        return {} if self.label == HEAD else said


class Bottleneck(nn.Module):
    """A linear layer, and after it y + U relu(D y + d) + u, with U, u and d that start at 0.

    The serial adapter of Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019,
    arXiv 1902.00751, with relu, without a norm of its own. A parallel one (He et al., "Towards a
    Unified View of Parameter-Efficient Transfer Learning", 2022, arXiv 2110.04366) has the layer's
    input in the place of y below D.
    """

    def __init__(self, base: nn.Linear, width: int, parallel: bool = False):
        super().__init__()
        self.base, self.parallel = base, parallel
        self.down = nn.Linear(base.in_features if parallel else base.out_features, width)
        self.up = nn.Linear(width, base.out_features)
        for zero in (self.up.weight, self.up.bias, self.down.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        y = self.base(x)
        return y + self.up(self.down(x if self.parallel else y).relu())


def attach(method: Method, model: nn.Module, sites: Mapping[str, list[str]], seed: int) -> None:
    """Freeze a model and put an adapter into it.

    Args:
        method: what to put in.
        model: changed in place.
        sites: ends of names of linear layers for OUTPUTS, QUERIES and ALL.
        seed: of what is drawn.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    if method.label == HEAD:
        return
    targets, options = sites[method.sites], dict(method.options)
    if method.family == "bottleneck":
        _put_bottlenecks(model, targets, options)
    elif method.family.startswith("SNNK"):
        config = SnnkConfig(
            target_modules=targets, projection_seed=seed, **{"placement": "serial"} | options
        )
        get_peft_model(model, config)
        _start(model, method.start)
    elif method.family == "VeRA":
        config = VeraConfig(target_modules=targets, projection_prng_key=seed, **options)
        get_peft_model(model, config)
    else:
        # the learning rate is chosen for each, so that the scale matters little
        get_peft_model(
            model, LoraConfig(target_modules=targets, lora_alpha=2 * options["r"], **options)
        )


def groups(method: Method, model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """What an optimizer is given: the gates of SNNK may have a rate of their own."""
    gates, others = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (gates if "snnk_gate" in name else others).append(weight)
    found = [{"params": others, "lr": rate}, {"params": gates, "lr": rate * method.gate}]
    return [group for group in found if group["params"]]


def trained(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _put_bottlenecks(model: nn.Module, targets: list[str], options: dict[str, Any]) -> None:
    names = [name for name, _ in model.named_modules() if name.endswith(tuple(targets))]
    for name in names:
        parent, _, own = name.rpartition(".")
        base: Any = model.get_submodule(name)
        setattr(model.get_submodule(parent), own, Bottleneck(base, **options))


def _start(model: nn.Module, start: str | float) -> None:
    for layer in _snnk_layers(model):
        weight = layer.snnk_weight["default"].data
        if start == "zero":
            weight.zero_()
            layer.snnk_gate["default"].data.fill_(1)
        elif start == "normal":
            weight.normal_()
        elif not isinstance(start, str):
            # features are homogeneous: those of a weight of another deviation are these, scaled
            weight.mul_(start / 0.02)


def _snnk_layers(model: nn.Module) -> Iterator[SnnkAdapterLinear]:
    return (module for module in model.modules() if isinstance(module, SnnkAdapterLinear))
