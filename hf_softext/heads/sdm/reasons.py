"""Why a prediction is admitted or not."""

from collections.abc import Mapping

from torch import Tensor

from hf_softext.heads.sdm.region import Region


def reasons(fields: Mapping[str, Tensor], finite: Tensor, region: Region) -> list[str]:
    """One word for each row: the first that holds.

    "admitted"; "non_finite": features or logits are NaN or infinite; "nothing_admitted": no region
    keeps every class as accurate as asked for, so no row ever is; "out_of_distribution": the
    nearest support row does not speak for the prediction; "low_similarity": too few do, for so high
    an output; "below_threshold": the output is too low for its class.

    Args:
        fields: of `SdmOutput`.
        finite: (B,), bool.
        region: in force.
    """
    empty = bool(region.min_similarity.isinf())
    columns = (
        finite,
        fields["admit"],
        fields["is_ood"],
        fields["rescaled_similarity"] < region.min_similarity,
    )
    found = []
    for is_finite, admit, is_ood, is_low in zip(*(c.tolist() for c in columns), strict=True):
        if not is_finite:
            found.append("non_finite")
        elif admit:
            found.append("admitted")
        elif empty:
            found.append("nothing_admitted")
        elif is_ood:
            found.append("out_of_distribution")
        else:
            found.append("low_similarity" if is_low else "below_threshold")
    return found
