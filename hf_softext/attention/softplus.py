"""Length-scaled softplus attention (LSSA) and its re-weighted form (LSSAR).

Reference:
    B. Gao, M. W. Spratling, "Softplus Attention with Re-weighting Boosts Length Extrapolation in
    Large Language Models", 2025, arXiv 2501.13428. The formulas were taken from accounts of the
    latest version and from an independent implementation; the authors' own code could not be
    obtained.
"""

from torch import Tensor

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.parameters import Choice, Number
from hf_softext.functional import sharpen, softplus_normalize

_SCALE = Number(default=None, low=0, high=1e4, above_low=True)


def reweighted(scores: Tensor, keep: Tensor, **parameters: float | str) -> Tensor:
    """Softplus weights, sharpened; see `hf_softext.functional.sharpen` for the parameters."""
    return sharpen(softplus_normalize(scores, keep), keep, **parameters)  # pyright: ignore[reportArgumentType]


SOFTPLUS = AttentionMethod(
    name="softplus",
    weights=softplus_normalize,
    cosine=True,
    row_map="softplus",
    parameters={"scale": _SCALE},
)

SOFTPLUS_REWEIGHTED = AttentionMethod(
    name="softplus_reweighted",
    weights=reweighted,
    cosine=True,
    row_map="softplus_sharpened",
    parameters={
        "scale": _SCALE,
        "power": Number(default=15.0, low=1, high=1000),
        "shift": Number(default=1.0, low=0, high=100),
        "free_rows": Number(default=3, low=0, high=2**31, integer=True),
        "degenerate": Choice(default="softplus", options=("softplus", "zero")),
    },
    # here it equals softplus
    start={"power": 1.0, "shift": 0.0},
)
