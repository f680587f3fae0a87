"""Decoding from the distribution that a model was trained with."""

from hf_softext.generation.stablemax import StableMaxLogitsProcessor, stablemax_decoding

__all__ = ["StableMaxLogitsProcessor", "stablemax_decoding"]
