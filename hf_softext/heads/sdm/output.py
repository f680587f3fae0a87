"""What an SDM head says about rows."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

REASONS = (
    "admitted",
    "non_finite",
    "nothing_admitted",
    "out_of_distribution",
    "low_similarity",
    "below_threshold",
)


@dataclass
class SdmOutput(ModelOutput):
    """Predictions with their evidence; B rows, C classes.

    Attributes:
        loss: (), mean cross-entropy of the logits; None where no labels were given.
        logits: (B, C), z'; NaN for rows whose features or logits are not finite.
        probs: (B, C), SDM(z'); with the universal estimator its rescaled output, of which the
            predicted class's entry has the offset taken off.
        prediction: (B,), int64, argmax of the logits, never of `probs`, which tie where distance is
            0; -1 where the logits are not finite.
        similarity: (B,), q: the run of nearest support rows that were predicted correctly, and as
            this row.
        distance: (B,), d: 1 is as near as any calibration row, 0 farther away than all of a class.
        distance_raw: (B,), squared distance to the nearest support row.
        rescaled_similarity: (B,), q'.
        is_ood: (B,), bool: no support row speaks for the prediction.
        admit: (B,), bool: the row is in the high-reliability region.
        admit_lower: (B,), bool: it still is with the lower bound of the distance quantile. The
            paper recommends this one.
        reason: what decided about `admit`, one of `REASONS` for each row.
        effective_sample_size: (B, C), calibration rows behind the bounds.
        d_lower: (B,), lower bound of d.
        d_upper: (B,), upper bound of d.
        probs_lower: (B, C), `probs` with `d_lower`.
        probs_upper: (B, C), `probs` with `d_upper`.
        rescaled_similarity_lower: (B,), q' with `d_lower`.
        exemplars: (B, M), the vectors that were compared.
        nearest: (B,), int64, number of the nearest support row, -1 where the row is not finite.
        nearest_id: its id, for each row; None likewise.
        nearest_distance: (B,), `distance_raw`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    probs: Tensor | None = None
    prediction: Tensor | None = None
    similarity: Tensor | None = None
    distance: Tensor | None = None
    distance_raw: Tensor | None = None
    rescaled_similarity: Tensor | None = None
    is_ood: Tensor | None = None
    admit: Tensor | None = None
    admit_lower: Tensor | None = None
    reason: list[str] | None = None
    effective_sample_size: Tensor | None = None
    d_lower: Tensor | None = None
    d_upper: Tensor | None = None
    probs_lower: Tensor | None = None
    probs_upper: Tensor | None = None
    rescaled_similarity_lower: Tensor | None = None
    exemplars: Tensor | None = None
    nearest: Tensor | None = None
    nearest_id: list[str | None] | None = None
    nearest_distance: Tensor | None = None
