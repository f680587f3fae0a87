"""Pure tensor functions, one idea a file. Nothing here knows a model, a config or another part of
this package."""

from hf_softext.functional.chunked_attention import chunked_attention
from hf_softext.functional.extended_sum import ExtendedSum
from hf_softext.functional.fused_attention import fused_attention
from hf_softext.functional.gaussian import gaussian_attention, gaussian_kernel
from hf_softext.functional.linear_logsumexp import linear_logsumexp
from hf_softext.functional.low_rank_gaussian import low_rank_gaussian
from hf_softext.functional.masked_softmax import masked_softmax
from hf_softext.functional.newton_pinv import newton_pinv
from hf_softext.functional.perp_grad import project_out
from hf_softext.functional.softmax_collapse import softmax_collapse
from hf_softext.functional.softplus import log_softplus, sharpen, softplus_normalize
from hf_softext.functional.stablemax import log_stablemax, stablemax, stablemax_logits

__all__ = [
    "ExtendedSum",
    "chunked_attention",
    "fused_attention",
    "gaussian_attention",
    "gaussian_kernel",
    "linear_logsumexp",
    "log_softplus",
    "log_stablemax",
    "low_rank_gaussian",
    "masked_softmax",
    "newton_pinv",
    "project_out",
    "sharpen",
    "softmax_collapse",
    "softplus_normalize",
    "stablemax",
    "stablemax_logits",
]
