"""Make any config of transformers tiny, and keep what its numbers say about each other.

Nothing here knows a model. The defaults of a config fit together: heads divide widths, the parts
of a rotary dimension add up, a list has an entry for each layer. Dividing every width by the same
factor keeps that; so does cutting every list of layers at the same places.
"""

from typing import Any

import transformers as hf

from hf_softext.attention.record import all_configs
from hf_softext.coverage.shrink import Shrinker, Size

# what to try, from the cheapest to the default config itself: some models have sizes in their code
LADDER = (
    Size(),
    Size(factor=16, layers=False),
    Size(heads=True, vocabulary=0),
    Size(factor=1, vocabulary=0),
)


def tiny_config(config_class: Any, size: Size) -> Any:
    """The default config of a class, shrunk; a new object at each call."""
    values = Shrinker(size).shrink(default_config(config_class).to_dict())
    config = config_class.from_dict(values)
    for part in all_configs(config):
        _set_rotary_sections(part)
    return config


def default_config(config_class: Any) -> Any:
    """The default config, also of the few classes that need to be told their parts."""
    encoders = {
        "EncoderDecoderConfig": hf.BertConfig,
        "SpeechEncoderDecoderConfig": hf.Wav2Vec2Config,
        "VisionEncoderDecoderConfig": hf.ViTConfig,
    }
    if config_class.__name__ in encoders:
        encoder = encoders[config_class.__name__]()
        return config_class.from_encoder_decoder_configs(encoder, hf.BertConfig())
    if config_class.__name__ == "VisionTextDualEncoderConfig":
        return config_class.from_vision_text_configs(hf.ViTConfig(), hf.BertConfig())
    return config_class()


def _set_rotary_sections(config: Any) -> None:
    """Parts of the rotary dimension for time and two directions that add up to it."""
    rope = getattr(config, "rope_parameters", None)
    takes = getattr(type(config), "ignore_keys_at_rope_validation", None) or ()
    if "mrope_section" not in takes or not isinstance(rope, dict):
        return
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    half = int(dim * rope.get("partial_rotary_factor", 1.0)) // 2
    side = half * 3 // 8
    rope["mrope_section"] = [side, side, half - 2 * side]
