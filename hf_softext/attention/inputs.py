"""The smallest inputs with which a model of any kind runs a forward pass."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.attention.record import all_configs

BATCH, LENGTH = 2, 8


def dummy_inputs(model: nn.Module) -> dict[str, Any]:
    """Inputs for a model, as its forward's signature and its config describe them.

    Raises:
        ValueError: it needs an argument for which there is no rule.
    """
    return next(candidate_inputs(model))


def candidate_inputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs for a model, the likeliest first: a name does not always tell the layout.

    Raises:
        ValueError: it needs an argument for which there is no rule.
    """
    known = _Known(model)
    main = getattr(model, "main_input_name", "input_ids")
    wanted = {main} if isinstance(main, str) else set(main)
    signature = inspect.signature(model.forward).parameters
    named = [name for name, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = {name for name in named if signature[name].default is inspect.Parameter.empty}
    # a wrapper takes (*args, **kwargs)
    wanted = {name for name in wanted if name in named or not named} | required
    if getattr(known.config, "is_encoder_decoder", False) and "decoder_input_ids" in named:
        wanted.add("decoder_input_ids")
    for name in list(wanted):
        wanted |= set(_COMPANIONS.get(name, ())) & set(named)
    if not wanted & set(_MAKERS) and "inputs_embeds" in named:
        wanted.add("inputs_embeds")
    if known.placeholder() is not None and "pixel_values" in named:
        yield from _text_with_image(known, named)
    seen = []
    for names in _choices(known, wanted, named):
        for variant in range(3):
            inputs = {}
            for name in sorted(names):
                makers = _MAKERS.get(name)
                if makers is None:
                    raise ValueError(
                        f"No default inputs for {type(model).__name__}, which needs {name!r}: pass "
                        "`inputs`."
                    )
                inputs[name] = makers[min(variant, len(makers) - 1)](known)
            shapes = {name: getattr(x, "shape", x) for name, x in inputs.items()}
            if shapes not in seen:
                seen.append(shapes)
                yield {name: known.place(x) for name, x in inputs.items()}


def _choices(known: "_Known", wanted: set[str], named: list[str]) -> list[set[str]]:
    """Sets of arguments to try: with the parts beside the text first, then without."""
    choices = [wanted]
    towers = {name for name in _TOWERS if name in named}
    if towers and len(known.configs) > 1 and not known.placeholder():
        choices.insert(0, wanted | towers)
    cross = {"encoder_hidden_states"} & set(named)
    if cross and "Decoder" in type(known.model).__name__:
        choices.insert(0, wanted | cross)
    rest = set(named) & set(_MAKERS) - {"inputs_embeds", "hidden_states"}
    return [*choices, wanted | cross, wanted | rest]


def _text_with_image(known: "_Known", named: list[str]) -> Iterator[dict[str, Any]]:
    """Text in which an image takes as many places as the model makes features of it."""
    encode = getattr(known.model, "get_image_features", None)
    if encode is None:
        return
    takes = inspect.signature(encode).parameters
    for maker in _MAKERS["pixel_values"]:
        given = {"pixel_values": maker(known)[:1], "image_grid_thw": _grid(known)}
        if "image_grid_thw" in takes:
            given["pixel_values"] = _patches(known)
        images = {name: known.place(x) for name, x in given.items() if name in takes}
        try:
            with torch.no_grad():
                features = encode(**images)
        except Exception:  # noqa: S112  another layout, or text alone
            continue
        features = getattr(features, "pooler_output", features)
        parts = features if isinstance(features, (list, tuple)) else [features]
        places = sum(part.numel() // part.shape[-1] for part in parts)
        image = torch.full((1, places), known.placeholder())
        ids = torch.cat([known.tokens(1, LENGTH // 2), image, known.tokens(1, LENGTH // 2)], dim=1)
        inputs = {"input_ids": known.place(ids), **images}
        if "mm_token_type_ids" in named:
            inputs["mm_token_type_ids"] = known.place((ids == known.placeholder()).int())
        yield {name: x for name, x in inputs.items() if name in named}


class _Known:
    """What is known of a model: numbers found in its config or in those below."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.config: Any = model.config
        self.configs = all_configs(self.config)
        self.generator = torch.Generator().manual_seed(0)
        first = next(model.parameters(), torch.zeros(0))
        self.device, self.dtype = first.device, first.dtype

    def needs(self, *names: str) -> bool:
        """Whether the forward has an argument of one of these names."""
        return any(name in inspect.signature(self.model.forward).parameters for name in names)

    def number(self, *names: str, default: int, last: bool = False) -> int:
        """The first of `names` that some config has as a whole number; the innermost if `last`."""
        configs = self.configs[::-1] if last else self.configs
        for name in names:
            for config in configs:
                value = getattr(config, name, None)
                if isinstance(value, (list, tuple)) and value:
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return default

    def side(self) -> tuple[int, int]:
        """Height and width of an image."""
        for name in ("image_size", "img_size", "input_size", "crop_size", "resolution"):
            for config in self.configs:
                value = getattr(config, name, None)
                if isinstance(value, dict):
                    value = value.get("height")
                if isinstance(value, int):
                    return value, value
                if (
                    isinstance(value, (list, tuple))
                    and len(value) == 2
                    and isinstance(value[0], int)
                ):
                    return value[0], value[1]
        return 224, 224

    def channels(self) -> int:
        return self.number(
            "num_channels", "in_channels", "in_chans", "num_input_channels", default=3
        )

    def placeholder(self) -> int | None:
        """The token in whose place an image goes, of models that put images into the text."""
        for name in ("image_token_id", "image_token_index"):
            value = getattr(self.config, name, None)
            if isinstance(value, int):
                return value
        return None

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def tokens(self, *shape: int) -> Tensor:
        """Ids that are no special token, with the end of the text where there is one."""
        special = set()
        for config in self.configs:
            for key, value in vars(config).items():
                if key.endswith(("_token_id", "_token_index", "_id")):
                    special |= set(value) if isinstance(value, list) else {value}
        vocabulary = self.number("vocab_size", default=100)
        plain = [i for i in range(min(vocabulary, 300)) if i not in special] or [0]
        index = torch.randint(len(plain), shape, generator=self.generator)
        ids = torch.tensor(plain)[index]
        end = getattr(self.config, "eos_token_id", None)
        if isinstance(end, int) and 0 <= end < vocabulary:
            ids[..., -1] = end
        return ids

    def place(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)


def _input_ids(known: _Known) -> Tensor:
    if type(known.model).__name__.endswith("MultipleChoice"):
        return known.tokens(BATCH, 2, LENGTH)
    return known.tokens(BATCH, LENGTH)


def _codes(known: _Known) -> Tensor:
    """Sound as several streams of tokens."""
    return known.tokens(BATCH, LENGTH, known.number("num_codebooks", "num_channels", default=1))


def _flat_codes(known: _Known) -> Tensor:
    return known.tokens(BATCH * known.number("num_codebooks", default=1), LENGTH)


def _pixels(known: _Known) -> Tensor:
    if known.needs("grid_thw", "image_grid_thw"):
        return _patches(known)
    return known.noise(BATCH, known.channels(), *known.side())


def _video(known: _Known) -> Tensor:
    frames = known.number("num_frames", "frames", default=8)
    return known.noise(BATCH, frames, known.channels(), *known.side())


def _grid(known: _Known) -> Tensor:
    return torch.tensor([[1, 4, 4]])


def _patches(known: _Known) -> Tensor:
    """The 16 patches of one image, as rows."""
    patch = known.number("patch_size", default=14, last=True)
    frames = known.number("temporal_patch_size", default=1)
    return known.noise(16, known.channels() * frames * patch * patch)


def _sequence(known: _Known) -> Tensor:
    if known.needs("grid_thw", "image_grid_thw"):
        return _patches(known)
    width = known.number("hidden_size", "d_model", "hidden_dim", "embed_dim", default=32)
    return known.noise(BATCH, LENGTH, width)


def _mel_first(known: _Known) -> Tensor:
    bins = known.number("num_mel_bins", "feature_size", "input_dim", default=80)
    return known.noise(BATCH, bins, 2 * min(known.number("max_source_positions", default=50), 1500))


def _mel_last(known: _Known) -> Tensor:
    bins = known.number(
        "num_mel_bins",
        "feature_projection_input_dim",
        "input_feat_per_channel",
        "input_feat_size",
        "input_size",
        "input_dim",
        "feature_size",
        default=80,
    )
    return known.noise(BATCH, known.number("max_length", default=64), bins)


def _sound(known: _Known) -> Tensor:
    return known.noise(BATCH, 8000)


def _sound_or_mel(known: _Known) -> Tensor:
    return _mel_last(known) if hasattr(known.config, "num_mel_bins") else _sound(known)


def _series(known: _Known) -> Tensor:
    lags = getattr(known.config, "lags_sequence", None) or [0]
    length = known.number("context_length", default=32) + max(lags)
    channels = known.number("num_input_channels", "input_size", default=1)
    return known.noise(BATCH, length) if channels == 1 else known.noise(BATCH, length, channels)


def _time_features(known: _Known) -> Tensor:
    series = _series(known)
    return known.noise(*series.shape[:2], known.number("num_time_features", default=0))


def _states_of_encoder(known: _Known) -> Tensor:
    width = known.number(
        "encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", "d_model", default=32
    )
    return known.noise(BATCH, LENGTH, width)


def _boxes(known: _Known) -> Tensor:
    return torch.zeros(BATCH, LENGTH, 4, dtype=torch.long)


Maker = Callable[[_Known], Any]
# how to make each argument; further entries are other layouts of the same name
_MAKERS: dict[str, tuple[Maker, ...]] = {
    "input_ids": (_input_ids, _codes, _flat_codes),
    "decoder_input_ids": (lambda known: known.tokens(BATCH, LENGTH), _codes, _flat_codes),
    "qformer_input_ids": (lambda known: known.tokens(BATCH, LENGTH),),
    "attention_mask": (lambda known: torch.ones(BATCH, LENGTH, dtype=torch.long),),
    "bbox": (_boxes, lambda known: _boxes(known).float()),
    "pixel_values": (_pixels, _video),
    "image": (_pixels,),
    "prompt_pixel_values": (_pixels,),
    "prompt_masks": (_pixels,),
    "pixel_values_videos": (_video,),
    "grid_thw": (_grid,),
    "image_grid_thw": (_grid,),
    "hidden_states": (_sequence,),
    "inputs_embeds": (_sequence,),
    "query_embeds": (_sequence,),
    "encoder_hidden_states": (_states_of_encoder,),
    "input_features": (_mel_first, _mel_last),
    "input_features_mask": (lambda known: torch.ones(_mel_first(known).shape[::2], dtype=torch.long),),
    "input_values": (_sound_or_mel, lambda known: _sound(known)[:, None], _mel_last),
    "past_values": (_series,),
    "past_observed_mask": (lambda known: torch.ones_like(_series(known)),),
    "past_time_features": (_time_features,),
}
# what goes along with an argument, where a model takes it
_COMPANIONS: dict[str, tuple[str, ...]] = {
    "input_ids": ("bbox",),
    "input_features": ("input_features_mask",),
}
_TOWERS = ("pixel_values", "input_features")
