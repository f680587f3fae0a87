"""Changing a head without training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hf_softext.functional.empirical_cdf import class_lists
from hf_softext.functional.nearest_rows import leading_matches
from hf_softext.functional.sdm import sdm
from hf_softext.heads.sdm.calibration import Calibration, spread
from hf_softext.heads.sdm.evidence import are_twins, distance_quantile, find_evidence
from hf_softext.heads.sdm.region import Region, threshold_curve
from hf_softext.heads.sdm.rows import check_features, check_labels
from hf_softext.heads.sdm.state import RESCALING, SdmState
from hf_softext.heads.user_warning import warn_user

if TYPE_CHECKING:
    from hf_softext.heads.sdm.head import SdmHead


class SdmUpdates(SdmState):
    """More support, other calibration rows, another accuracy."""

    @torch.no_grad()
    def add_support(
        self,
        features: Tensor,
        labels: Any,
        *,
        ids: Sequence[str] | None = None,
        texts: Sequence[str | None] | None = None,
    ) -> None:
        """Append labelled rows to the support, without training.

        Predictions stay as they are; similarity and distance of later rows change. The region is
        not looked for again: `recalibrate` with rows that are not in the support does that. A row
        that is in the support already counts twice from then on, and a warning says so.

        Args:
            features: (B, D), finite; those of texts are made by `extract`.
            labels: (B,), int64, or names of id2label. A row of a number outside 0 to C - 1, such
                as -1, never matches: it marks its neighbourhood as out of distribution.
            ids: for each a new one; None: counted on.
            texts: for each; None: without.

        Raises:
            TypeError: labels that are neither whole numbers nor names.
            ValueError: other shapes, values that are not finite, a name that is none of id2label's,
                or an id that is taken.
        """
        exemplars, logits = self._adapt(features)
        labels = check_labels(labels, len(features), names=self.config.id2label)
        labels = labels.to(exemplars.device)
        if ids is None:
            start = len(self.support_ids)
            ids = [f"added-{start + number}" for number in range(len(labels))]
        ids, seen = list(map(str, ids)), set(self.support_ids)
        repeated = [one for one in ids if one in seen or seen.add(one)]
        if repeated or len(ids) != len(labels):
            raise ValueError(
                f"ids={ids[:3]!r}...: {len(labels)} ids are needed that are new"
                + (f", {repeated[0]!r} is not." if repeated else ".")
            )
        if texts is not None and len(texts) != len(labels):
            raise ValueError(f"texts are {len(texts)}, and rows {len(labels)}: give one for each.")
        own = torch.arange(len(labels), device=labels.device) + len(self.support_labels)
        predictions = logits.argmax(1)
        self.support_exemplars = torch.cat([self.support_exemplars, exemplars])
        self.support_labels = torch.cat([self.support_labels, labels])
        self.support_predictions = torch.cat([self.support_predictions, predictions])
        _, _, distance = leading_matches(
            exemplars, predictions, self.support_exemplars, self.support.classes, exclude=own
        )
        twins = int((are_twins(exemplars, distance) & (labels == predictions)).sum())
        if twins:
            warn_user(
                f"{twins} of {len(labels)} rows are in the support twice now: they count twice in "
                "the similarity of what is near them, and more is admitted than was calibrated. "
                "Leave out rows that are in it already."
            )
        self.support_ids += ids
        self.support_texts += [None] * len(labels) if texts is None else list(texts)

    @torch.no_grad()
    def recalibrate(
        self, alpha: float | None = None, features: Tensor | None = None, labels: Any = None
    ) -> Region:
        """Look for the region again, without training.

        Args:
            alpha: the accuracy to hold; None: as before.
            features: (N, D), other calibration rows, which take the place of the old ones: in the
                ranks of distances, the sample sizes and the region. None: the old ones. Those of
                texts are made by `extract`.
            labels: (N,), of them: int64, or names of id2label.

        Returns:
            The region in force from now on.

        Raises:
            ValueError: alpha outside (0.5, 1], features or labels alone, rows with a class missing,
                or rows for the universal estimator, whose rescaling was trained on the old ones.

        Warns:
            EmptyRegionWarning: nothing is admitted; it names the class in the way, and the highest
                alpha that has a region.
        """
        from hf_softext.heads.sdm.diagnosis import warn_if_empty

        region = self.find_region(alpha, features, labels)
        warn_if_empty(cast("SdmHead", self))
        return region

    @torch.no_grad()
    def find_region(
        self, alpha: float | None = None, features: Tensor | None = None, labels: Any = None
    ) -> Region:
        """`recalibrate`, without its warning that nothing is admitted."""
        if (features is None) != (labels is None):
            raise ValueError("features and labels belong together: give both, or neither.")
        config = replace(self.config, alpha=self.config.alpha if alpha is None else alpha)
        state = {}
        if features is not None:
            if config.estimator == "universal":
                raise ValueError(
                    'features: estimator="universal" was trained on its calibration rows; fit it '
                    "again to change them."
                )
            rows = self._calibrate_on(features, labels)
            state = {f"calibration_{name}": value for name, value in rows._asdict().items()}
        self.config = config
        self.fill(state)
        region = self._scores().region(config.alpha)
        state = {"min_similarity": region.min_similarity, "thresholds": region.thresholds}
        if config.estimator == "universal":
            found = spread({name: getattr(self, name) for name in RESCALING}, region, config.alpha)
            state["spread_similarity"], state["spread_offsets"] = found
        self.fill(state)
        return region

    def threshold_curve(self) -> tuple[Tensor, Tensor]:
        """Why there is a region or none: candidates (T,) for the least similarity, ascending, and
        the threshold of every class at each, (T, C). See `region.threshold_curve`."""
        scores = self._scores()
        return threshold_curve(
            scores.outputs,
            scores.valid_similarity,
            scores.labels,
            self.config.alpha,
            scores.num_labels,
        )

    def _calibrate_on(self, features: Tensor, labels: Any) -> Calibration:
        exemplars, logits = self._adapt(features)
        count = self.thresholds.numel()
        labels = check_labels(
            labels, len(features), num_labels=count, every_class=True, names=self.config.id2label
        )
        labels = labels.to(exemplars.device)
        prediction = logits.argmax(1)
        evidence = find_evidence(
            exemplars, prediction, self.support, max_q=self.config.max_q, index=self.config.index
        )
        twins = int(are_twins(exemplars, evidence.squared_distance).sum())
        if twins:
            warn_user(
                f"{twins} of {len(labels)} calibration rows are support rows too: they vouch for "
                "themselves, and the region will be too wide."
            )
        kept = evidence.similarity > 0
        lists = class_lists(evidence.squared_distance[kept], labels[kept], count)
        distance = distance_quantile(lists, evidence.squared_distance)
        probs = sdm(logits, evidence.similarity, distance)
        return Calibration(
            labels, prediction, evidence.similarity, evidence.squared_distance, probs
        )

    def _adapt(self, features: Tensor) -> tuple[Tensor, Tensor]:
        check_features(features, self.config.num_features, finite=True)
        given = self.adaptor.standardize(features.detach().to(self.support_exemplars.device))
        exemplars, logits = self.adaptor(given)
        wrong = (~exemplars.square().sum(1).isfinite()).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"features of row {wrong[0]} ({len(wrong)} in all) are too large to be compared: "
                "leave these rows out."
            )
        return exemplars, logits
