"""StableMax attention: the positive map of StableMax in place of exp.

The paper uses StableMax in the loss; as an attention normaliser it is this package's own
combination.

Reference:
    L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
    Stability", 2025, arXiv 2501.04697.
"""

from torch import Tensor

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.parameters import Number
from hf_softext.functional import masked_softmax, stablemax_logits


def stablemax_normalize(scores: Tensor, keep: Tensor) -> Tensor:
    """StableMax over the visible scores: softmax(sign(s) log(1 + |s|))."""
    return masked_softmax(stablemax_logits(scores), keep)


STABLEMAX = AttentionMethod(
    name="stablemax",
    weights=stablemax_normalize,
    cosine=False,
    row_map="stablemax",
    parameters={"scale": Number(default=None, low=0, high=1e4, above_low=True)},
)
