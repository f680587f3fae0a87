"""Predictions of an SDM head."""

from typing import Any

import torch
from torch import Tensor

from hf_softext.functional.nearest_rows import nearest_rows
from hf_softext.heads.sdm import canonical, universal
from hf_softext.heads.sdm.evidence import distance_quantile, find_evidence
from hf_softext.heads.sdm.output import SdmOutput
from hf_softext.heads.sdm.reasons import reasons
from hf_softext.heads.sdm.region import Region
from hf_softext.heads.sdm.rows import check_features
from hf_softext.heads.sdm.updating import SdmUpdates


class SdmPredictions(SdmUpdates):
    """Predictions, their evidence, and the training rows behind it."""

    @torch.no_grad()
    def forward(self, features: Tensor) -> SdmOutput:
        """Predict.

        Args:
            features: (B, D), floating point; computed in float32. B may be 0.

        Returns:
            See `SdmOutput`. A row that is not finite is refused, the others are not touched by it.

        Raises:
            ValueError: features of another shape.
        """
        check_features(features, self.config.num_features)
        home = self.support_exemplars.device
        given = self.adaptor.standardize(features.detach().to(home))
        exemplars, logits = self.adaptor(given)
        finite = exemplars.isfinite().all(1) & logits.isfinite().all(1) & given.isfinite().all(1)
        # such rows go along as zeros, and are taken out at the end
        clean = logits.masked_fill(~finite[:, None], 0.0)
        vectors = exemplars.masked_fill(~finite[:, None], 0.0)
        prediction = clean.argmax(1)
        evidence = find_evidence(
            vectors, prediction, self.support, max_q=self.config.max_q, index=self.config.index
        )
        similarity = evidence.similarity.masked_fill(~finite, 0.0)
        squared = evidence.squared_distance.masked_fill(~finite, torch.inf)
        distance = distance_quantile(self._lists("distance"), squared)
        fields = self._judge(clean, similarity, distance)
        reason = reasons(fields, finite, self._region_in_force())
        nearest = evidence.nearest.masked_fill(~finite, -1)
        ids = [self.support_ids[row] if row >= 0 else None for row in nearest.tolist()]
        return SdmOutput(
            logits=logits.masked_fill(~finite[:, None], torch.nan),
            prediction=prediction.masked_fill(~finite, -1),
            similarity=similarity,
            distance=distance,
            distance_raw=squared,
            reason=reason,
            exemplars=exemplars,
            nearest=nearest,
            nearest_id=ids,
            nearest_distance=squared,
            **fields,
        )

    def neighbours(self, output: SdmOutput, count: int = 3) -> list[list[dict[str, Any]]]:
        """The training rows nearest to each prediction: what justifies it, or speaks against it.

        Args:
            output: of `forward`.
            count: how many; all where there are fewer.

        Returns:
            For each row a list, nearest first, of "id", "text", "label", "predicted" (names) and
            "squared_distance" (Euclidean; `distance` of `SdmOutput` is a rank); empty for a row
            that is not finite.

        Raises:
            ValueError: a count below 0, or an output without its vectors.
        """
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"count={count!r} must be a whole number, at least 0.")
        if output.exemplars is None or output.prediction is None:
            raise ValueError("output has no exemplars or prediction: give one of the head's own.")
        found: list[list[dict[str, Any]]] = [[] for _ in range(len(output.prediction))]
        known = (output.prediction >= 0).nonzero().squeeze(1)
        rows, distances = nearest_rows(output.exemplars[known], self.support_exemplars, count)
        labels, predictions = self.support_labels.tolist(), self.support_predictions.tolist()
        for place, chosen, far in zip(
            known.tolist(), rows.tolist(), distances.tolist(), strict=True
        ):
            found[place] = [
                {
                    "id": self.support_ids[row],
                    "text": self.support_texts[row],
                    "label": self.label_name(labels[row]),
                    "predicted": self.label_name(predictions[row]),
                    "squared_distance": distance,
                }
                for row, distance in zip(chosen, far, strict=True)
            ]
        return found

    def label_name(self, label: int) -> str | None:
        """The name of a class; None for a row without one."""
        if not 0 <= label < self.thresholds.numel():
            return None
        return self.config.id2label.get(label, str(label))

    def _region_in_force(self) -> Region:
        if self.config.estimator == "universal":
            return Region(
                torch.maximum(self.min_similarity, self.spread_similarity), self.thresholds
            )
        return self.region

    def _judge(self, logits: Tensor, similarity: Tensor, distance: Tensor) -> dict[str, Tensor]:
        lists, alpha = self._lists("similarity"), self.config.alpha
        if self.config.estimator != "universal":
            return canonical.judge(logits, similarity, distance, lists, self.region, alpha)
        rescaling = universal.Rescaling(
            self._lists("output"), self.rescaling_weight, self.spread_offsets
        )
        return universal.judge(
            logits, similarity, distance, lists, self._region_in_force(), alpha, rescaling
        )
