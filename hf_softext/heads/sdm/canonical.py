"""The estimator of "Similarity-Distance-Magnitude Activations": outputs, bounds, admission."""

from torch import Tensor

from hf_softext.functional.empirical_cdf import ClassLists
from hf_softext.functional.sdm import rescaled_similarity, sdm
from hf_softext.heads.sdm.bounds import effective_sample_size, sample_size_error
from hf_softext.heads.sdm.region import Region


def judge(
    logits: Tensor,
    similarity: Tensor,
    distance: Tensor,
    lists: ClassLists,
    region: Region,
    alpha: float,
) -> dict[str, Tensor]:
    r"""Everything about a prediction that follows from logits, similarity and distance.

    A row is admitted if $q' \ge 1$, $q' \ge q'_{min}$ and $\mathrm{SDM}(z')_{\hat y} \ge
    \psi_{\hat y}$. The bounds put $d \mp \max_c \epsilon_c$, kept within [0, 1], in d's place.

    Args:
        logits: (B, C), float32, finite.
        similarity: (B,), q.
        distance: (B,), d.
        lists: rescaled similarities of the calibration rows of every true class.
        region: what was found on them.
        alpha: what it was found for.

    Returns:
        Fields of `SdmOutput` by name.

    Notes:
        The authors' code also asks that one class alone passes its threshold; as thresholds are at
        least alpha > 1/2, that follows.
    """
    probs, q = _output(logits, similarity, distance)
    size = effective_sample_size(lists, q)
    error = sample_size_error(size, alpha).amax(1)
    lower, upper = (distance - error).clamp(0, 1), (distance + error).clamp(0, 1)
    probs_lower, q_lower = _output(logits, similarity, lower)
    probs_upper, _ = _output(logits, similarity, upper)
    prediction = logits.argmax(1)
    # as the authors write it; the same as no similarity at all
    is_ood = q.floor() <= 0
    return {
        "probs": probs,
        "rescaled_similarity": q,
        "is_ood": is_ood,
        "admit": inside(region, q, probs, prediction) & ~is_ood,
        "admit_lower": inside(region, q_lower, probs_lower, prediction) & ~is_ood,
        "effective_sample_size": size,
        "d_lower": lower,
        "d_upper": upper,
        "probs_lower": probs_lower,
        "probs_upper": probs_upper,
        "rescaled_similarity_lower": q_lower,
    }


def inside(region: Region, similarity: Tensor, probs: Tensor, prediction: Tensor) -> Tensor:
    """(B,), bool: similarity and output of the predicted class reach the region's.

    NaN does not.
    """
    return (similarity >= region.min_similarity) & reaches(region, probs, prediction)


def reaches(region: Region, probs: Tensor, prediction: Tensor) -> Tensor:
    """(B,), bool: the output of the predicted class reaches its threshold."""
    return of_class(probs, prediction) >= region.thresholds[prediction]


def of_class(values: Tensor, classes: Tensor) -> Tensor:
    """(B, C) to (B,): of each row, the entry of its class."""
    return values.gather(1, classes.unsqueeze(1)).squeeze(1)


def _output(logits: Tensor, similarity: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    probs = sdm(logits, similarity, distance)
    return probs, rescaled_similarity(similarity, of_class(probs, logits.argmax(1)))
