"""The quantization method "baq", made known to transformers."""

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.quantizer import BaqQuantizer

NAME = "baq"


def register_baq() -> None:
    """Register `BaqConfig` and `BaqQuantizer`; calling it again changes nothing.

    Raises:
        ValueError: another package has registered the name.
    """
    for mapping, ours, register in (
        (AUTO_QUANTIZATION_CONFIG_MAPPING, BaqConfig, register_quantization_config),
        (AUTO_QUANTIZER_MAPPING, BaqQuantizer, register_quantizer),
    ):
        present = mapping.get(NAME)
        if present is None:
            register(NAME)(ours)
        elif present.__module__ == ours.__module__:
            # the module may have been reloaded
            mapping[NAME] = ours
        else:
            raise ValueError(
                f"quant_method={NAME!r} is taken by {present.__module__}; import hf_softext "
                "without that package."
            )
