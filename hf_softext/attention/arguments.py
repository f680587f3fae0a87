"""How to make each argument of a forward pass from what a model's config says."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.attention.record import all_configs

BATCH, LENGTH = 2, 8


class Known:
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
        """Of an image."""
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
        """Standard normal numbers, the same in every process."""
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
        """A tensor on the model's device and, if it is floating point, in its dtype."""
        if not isinstance(x, Tensor):
            return x
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)


def _input_ids(known: Known) -> Tensor:
    if type(known.model).__name__.endswith("MultipleChoice"):
        return known.tokens(BATCH, 2, LENGTH)
    return known.tokens(BATCH, LENGTH)


def _codes(known: Known) -> Tensor:
    """Sound as several streams of tokens."""
    return known.tokens(BATCH, LENGTH, known.number("num_codebooks", "num_channels", default=1))


def _codes_alone(known: Known) -> Tensor:
    """The same, where it is not the decoder that takes them."""
    alone = not getattr(known.config, "is_encoder_decoder", False)
    return _codes(known) if alone else _input_ids(known)


def _flat_codes(known: Known) -> Tensor:
    return known.tokens(BATCH * known.number("num_codebooks", default=1), LENGTH)


def pixels(known: Known) -> Tensor:
    """Images, or the patches of one for a model that takes those."""
    if known.needs("grid_thw", "image_grid_thw"):
        return patches(known)
    return known.noise(BATCH, known.channels(), *known.side())


def _video(known: Known) -> Tensor:
    frames = known.number("num_frames", "frames", default=8)
    return known.noise(BATCH, frames, known.channels(), *known.side())


def grid(known: Known) -> Tensor:
    """How many patches `patches` has in time, height and width."""
    return torch.tensor([[1, 4, 4]])


def patches(known: Known) -> Tensor:
    """The 16 patches of one image, as rows."""
    patch = known.number("patch_size", default=14, last=True)
    frames = known.number("temporal_patch_size", default=1)
    return known.noise(16, known.channels() * frames * patch * patch)


def _sequence(known: Known) -> Tensor:
    if known.needs("grid_thw", "image_grid_thw"):
        return patches(known)
    width = known.number("hidden_size", "d_model", "hidden_dim", "embed_dim", default=32)
    return known.noise(BATCH, LENGTH, width)


def _mel_first(known: Known) -> Tensor:
    bins = known.number("num_mel_bins", "feature_size", "input_dim", default=80)
    return known.noise(BATCH, bins, 2 * min(known.number("max_source_positions", default=50), 1500))


def _mel_last(known: Known) -> Tensor:
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


def _sound(known: Known) -> Tensor:
    return known.noise(BATCH, 8000)


def _sound_or_mel(known: Known) -> Tensor:
    return _mel_last(known) if hasattr(known.config, "num_mel_bins") else _sound(known)


def _series(known: Known) -> Tensor:
    lags = getattr(known.config, "lags_sequence", None) or [0]
    length = known.number("context_length", default=32) + max(lags)
    channels = known.number("num_input_channels", "input_size", default=1)
    if channels == 1 and not hasattr(known.config, "num_input_channels"):
        return known.noise(BATCH, length)
    return known.noise(BATCH, length, channels)


def _time_features(known: Known) -> Tensor:
    series = _series(known)
    return known.noise(*series.shape[:2], known.number("num_time_features", default=0))


def _states_of_encoder(known: Known) -> Tensor:
    width = known.number(
        "encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", "d_model", default=32
    )
    return known.noise(BATCH, LENGTH, width)


def _boxes(known: Known) -> Tensor:
    return torch.zeros(BATCH, LENGTH, 4, dtype=torch.long)


Maker = Callable[[Known], Any]
# how to make each argument; further entries are other layouts of the same name
MAKERS: dict[str, tuple[Maker, ...]] = {
    "input_ids": (_input_ids, _codes_alone, _flat_codes),
    "decoder_input_ids": (lambda known: known.tokens(BATCH, LENGTH), _codes, _flat_codes),
    "qformer_input_ids": (lambda known: known.tokens(BATCH, LENGTH),),
    "attention_mask": (lambda known: torch.ones(BATCH, LENGTH, dtype=torch.long),),
    "bbox": (_boxes, lambda known: _boxes(known).float()),
    "pixel_values": (pixels, _video),
    "image": (pixels,),
    "prompt_pixel_values": (pixels,),
    "prompt_masks": (pixels,),
    "pixel_values_videos": (_video,),
    "grid_thw": (grid,),
    "image_grid_thw": (grid,),
    "inputs": (_input_ids, pixels, _sound),
    "hidden_states": (_sequence,),
    "inputs_embeds": (_sequence,),
    "query_embeds": (_sequence,),
    "encoder_hidden_states": (_states_of_encoder,),
    "input_features": (_mel_first, _mel_last),
    "input_features_mask": (
        lambda known: torch.ones(_mel_first(known).shape[::2], dtype=torch.long),
    ),
    "input_values": (
        _sound_or_mel,
        _sound,
        lambda known: _sound(known)[:, None],
        _mel_last,
    ),
    "past_values": (_series,),
    "use_cache": (lambda known: False,),
    "past_observed_mask": (lambda known: torch.ones_like(_series(known)),),
    "past_time_features": (_time_features,),
}
