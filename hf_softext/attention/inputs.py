"""The smallest inputs with which a model of any kind runs a forward pass."""

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_softext.attention.arguments import LENGTH, MAKERS, Known, grid, patches, pixels

# what goes along with an argument, where a model takes it
_COMPANIONS: dict[str, tuple[str, ...]] = {
    "input_ids": ("bbox",),
    "input_features": ("input_features_mask",),
}
_TOWERS = ("pixel_values", "input_features")


def candidate_inputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs for a model, the likeliest first: a name does not always tell the layout.

    Raises:
        ValueError: it needs an argument for which there is no rule.
    """
    known = Known(model)
    signature = inspect.signature(model.forward).parameters
    named = [name for name, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = {name for name in named if signature[name].default is inspect.Parameter.empty}
    placeholder = known.placeholder()
    if placeholder is not None and "pixel_values" in named:
        yield from _text_with_image(known, placeholder, named)
    seen = []
    for names in _choices(known, _wanted(known, named, required), named):
        unknown = sorted(names - set(MAKERS))
        if unknown:
            raise ValueError(
                f"No default inputs for {type(model).__name__}, which needs {unknown[0]!r}: pass "
                "`inputs`."
            )
        for variant in range(max((len(MAKERS[name]) for name in names), default=1)):
            inputs = {
                name: MAKERS[name][min(variant, len(MAKERS[name]) - 1)](known)
                for name in sorted(names)
            }
            shapes = {name: getattr(x, "shape", x) for name, x in inputs.items()}
            if shapes not in seen:
                seen.append(shapes)
                yield {name: known.place(x) for name, x in inputs.items()}


def _wanted(known: Known, named: list[str], required: set[str]) -> set[str]:
    """The main input, what has no default, and what goes along with them."""
    main = getattr(known.model, "main_input_name", "input_ids")
    wanted = {main} if isinstance(main, str) else set(main)
    # a wrapper takes (*args, **kwargs)
    wanted = {name for name in wanted if name in named or not named} | required
    if getattr(known.config, "is_encoder_decoder", False) and "decoder_input_ids" in named:
        wanted.add("decoder_input_ids")
    for name in list(wanted):
        wanted |= set(_COMPANIONS.get(name, ())) & set(named)
    if not wanted:
        wanted |= set([name for name in ("input_ids", "inputs_embeds") if name in named][:1])
    return wanted


def _choices(known: Known, wanted: set[str], named: list[str]) -> list[set[str]]:
    """Sets of arguments to try: with the parts beside the text first, then without."""
    choices = [wanted]
    towers = {name for name in _TOWERS if name in named}
    if towers and len(known.configs) > 1 and not known.placeholder():
        choices.insert(0, wanted | towers)
    cross = {"encoder_hidden_states"} & set(named)
    if cross and "Decoder" in type(known.model).__name__:
        choices.insert(0, wanted | cross)
    rest = set(named) & set(MAKERS) - {"inputs_embeds", "hidden_states"}
    choices += [wanted | cross, wanted | rest, {"input_ids"} & set(named)]
    return [*choices, wanted - {"input_ids"} | {"inputs_embeds"} & set(named)]


def _text_with_image(known: Known, placeholder: int, named: list[str]) -> Iterator[dict[str, Any]]:
    """Text in which an image takes as many places as the model makes features of it."""
    encode = getattr(known.model, "get_image_features", None)
    if encode is None:
        return
    takes = inspect.signature(encode).parameters
    image = patches(known) if "image_grid_thw" in takes else pixels(known)[:1]
    given = {"image_grid_thw": grid(known), "image_sizes": torch.tensor([known.side()])}
    for layout, names in itertools.product(
        (image, image[:, None]), (set(given), {"image_grid_thw"})
    ):
        images = {
            name: known.place(x)
            for name, x in {"pixel_values": layout, **given}.items()
            if name in takes and name in names | {"pixel_values"}
        }
        try:
            with torch.no_grad():
                features = encode(**images)
        except Exception:
            # another layout, or text alone
            continue
        features = getattr(features, "pooler_output", features)
        parts = features if isinstance(features, (list, tuple)) else [features]
        places = sum(part.numel() // part.shape[-1] for part in parts)
        start, end = known.tokens(1, LENGTH // 2), known.tokens(1, LENGTH // 2)
        ids = torch.cat([start, torch.full((1, places), placeholder), end], dim=1)
        inputs = {"input_ids": known.place(ids), **images}
        if "mm_token_type_ids" in named:
            inputs["mm_token_type_ids"] = known.place((ids == placeholder).int())
        yield {name: x for name, x in inputs.items() if name in named}
