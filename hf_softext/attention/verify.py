"""Find out whether a model really runs the attention that it was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.attention._common import OBSERVERS
from hf_softext.catalog import methods


@dataclass(frozen=True)
class AttentionReport:
    """What one forward pass reached.

    Attributes:
        attention: the implementation named by the model's config.
        reached: names of the modules that called one of this package's methods.
        bypassed: names of the attention modules that ran without calling one.
    """

    attention: str
    reached: list[str]
    bypassed: list[str]

    def __str__(self) -> str:
        total = len(self.reached) + len(self.bypassed)
        text = f"{self.attention}: {len(self.reached)} of {total} attention modules reached"
        return text + (f"; bypassed: {', '.join(self.bypassed)}" if self.bypassed else "")


def verify_attention(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> AttentionReport:
    """Run one forward pass and count the attention modules that used the chosen method.

    Some model classes of transformers do not look attention up in the registry; most of those
    accept the name all the same and ignore it. This is how to know.

    Args:
        model: a transformers model that was given one of this package's attention names.
        inputs: keyword arguments of its forward; by default a few tokens, or an empty image or
            sound, as its config describes them.

    Returns:
        The modules reached and the attention modules that ran without being reached.

    Raises:
        ValueError: no module was reached, or the model has another attention than ours, or no
            default inputs are known for it.
    """
    config: Any = model.config
    names = [row.name for row in methods("attention")]
    running = {
        getattr(getattr(module, "config", None), "_attn_implementation", None)
        for module in model.modules()
    }
    used = [name for name in names if name in running]
    if not used:
        raise ValueError(
            f"{type(model).__name__} runs attn_implementation={config._attn_implementation!r}; "
            f"choose one of {', '.join(names)} first: hf_softext.apply_attention(model, "
            f"{names[0]!r})."
        )
    ran: list[nn.Module] = []
    reached: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
        for module in model.modules()
        if _looks_like_attention(module)
    ]
    modes = [(module, module.training) for module in model.modules()]
    OBSERVERS.append(reached.append)
    try:
        with torch.no_grad():
            model.eval()(**(dummy_inputs(model) if inputs is None else inputs))
    finally:
        OBSERVERS.remove(reached.append)
        for module, mode in modes:
            module.training = mode
        for hook in hooks:
            hook.remove()
    report = _report(model, "/".join(used), ran, reached)
    if not report.reached:
        raise ValueError(_ignored(model, report))
    return report


def dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    """The smallest inputs that a model of this kind takes.

    Raises:
        ValueError: its main input is of a kind that has no default.
    """
    config: Any = model.config
    device = next(model.parameters()).device
    main = getattr(model, "main_input_name", "input_ids")
    tokens = torch.ones(2, 5, dtype=torch.long, device=device)
    if main == "input_ids":
        inputs = {"input_ids": tokens}
    elif main == "pixel_values":
        side = getattr(config, "image_size", 224)
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        inputs = {
            main: torch.zeros(2, getattr(config, "num_channels", 3), height, width, device=device)
        }
    elif (
        main == "input_features"
        and hasattr(config, "num_mel_bins")
        and hasattr(config, "max_source_positions")
    ):
        inputs = {
            main: torch.zeros(
                2, config.num_mel_bins, 2 * config.max_source_positions, device=device
            )
        }
    elif main == "input_values":
        inputs = {main: torch.zeros(2, 16000, device=device)}
    else:
        raise ValueError(
            f"No default inputs for {type(model).__name__}, whose main input is {main!r}: pass "
            "`inputs`."
        )
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    if {"text_config", "vision_config"} <= set(
        getattr(config, "sub_configs", {})
    ) and main == "input_ids":
        # two towers, as in CLIP: both must run
        vision = config.vision_config
        inputs["pixel_values"] = torch.zeros(
            2, 3, vision.image_size, vision.image_size, device=device
        )
    dtype = next(model.parameters()).dtype
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def _looks_like_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower() or "attn" in type(module).__name__.lower()


def _report(
    model: nn.Module, attention: str, ran: list[nn.Module], reached: list[nn.Module]
) -> AttentionReport:
    names = {id(module): name for name, module in model.named_modules()}
    hit = sorted({names[id(module)] for module in reached if id(module) in names})
    # an attention module may wrap another one: only the innermost counts, and none that contains
    # or sits in a hit
    candidates = {names[id(module)] for module in ran}
    inner = {
        name for name in candidates if not any(other.startswith(name + ".") for other in candidates)
    }
    bypassed = sorted(
        name
        for name in inner
        if not any(h == name or h.startswith(name + ".") or name.startswith(h + ".") for h in hit)
    )
    return AttentionReport(attention, hit, bypassed)


def _ignored(model: nn.Module, report: AttentionReport) -> str:
    where = (
        f"{len(report.bypassed)} attention modules ran ({report.bypassed[0]}, ...)"
        if report.bypassed
        else "none ran"
    )
    return (
        f"{type(model).__name__} accepts attn_implementation={report.attention!r} and ignores it: "
        f"{where}, none through "
        f"transformers' AttentionInterface. Its outputs are those of its own attention code."
    )
