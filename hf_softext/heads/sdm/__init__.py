"""Similarity-Distance-Magnitude: predictions that come with training rows that speak for them."""

from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.output import SdmOutput

__all__ = ["SdmConfig", "SdmHead", "SdmOutput"]
