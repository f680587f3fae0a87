"""Rows that an SDM head has judged, beside what they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_softext.functional.sdm import rescaled_similarity
from hf_softext.heads.sdm.canonical import inside, of_class
from hf_softext.heads.sdm.evidence import (
    Evidence,
    are_twins,
    distance_lists,
    distance_quantile,
)
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.region import Region
from hf_softext.heads.sdm.verifier import CLASSES, GOOD, POOLING, PREDICTED_BAD
from hf_softext.metrics.selective import selective_accuracy


@dataclass(frozen=True)
class Judged:
    """N rows and the verdicts on them.

    Of completions, every answer counts as given, so that `answers` is "good" throughout and right
    where the completion is; admitted are those predicted good, in the region.

    Attributes:
        wanted: (N,), int64, the true class.
        answers: (N,), int64, what is relied on if the row is admitted.
        score: (N,), the head's output for it; -1 where there is none.
        plain: (N,), the same by softmax of the same logits; None where the logits are not known.
        probs: (N, C), the head's outputs.
        predictions: (N,), int64, of the head.
        rescaled: (N,), rescaled similarity.
        admit: (N,), bool.
        admit_lower: (N,), bool; None where it is not known.
        similarity: (N,).
        distance: (N,).
        reasons: N words; None where they are not known.
        completions: whether the rows are completions.
    """

    wanted: np.ndarray
    answers: np.ndarray
    score: np.ndarray
    plain: np.ndarray | None
    probs: Tensor
    predictions: Tensor
    rescaled: Tensor
    admit: np.ndarray
    admit_lower: np.ndarray | None
    similarity: np.ndarray
    distance: np.ndarray
    reasons: list[str] | None
    completions: bool

    @property
    def right(self) -> np.ndarray:
        """(N,), bool."""
        return self.answers == self.wanted

    def admitted_in(self, region: Region) -> np.ndarray:
        """(N,), bool: what another region would admit."""
        known = self.predictions >= 0
        found = inside(region, self.rescaled, self.probs, self.predictions.clamp(min=0))
        found = found & known & (self.rescaled >= 1)
        return found.cpu().numpy() & (self.predictions.cpu().numpy() == self.answers)

    def scores(self, alpha: float) -> dict[str, dict[str, float]]:
        """`selective_accuracy` of all rows, of those admitted, and of a softmax of at least alpha.

        Of completions, the least accuracies of a class say nothing, and are left out.
        """
        admitted = {"all": np.ones(len(self.wanted), dtype=bool), "admitted": self.admit}
        if self.admit_lower is not None:
            admitted["admitted by the lower bound"] = self.admit_lower
        if self.plain is not None:
            admitted[f"softmax of at least {alpha:g}"] = self.plain >= alpha
        found = {}
        for name, admit in admitted.items():
            scores = selective_accuracy(self.answers, self.wanted, admit)
            if self.completions:
                scores = {one: scores[one] for one in ("accuracy", "admitted")}
            found[name] = scores
        return found


def is_verifier(head: SdmHead) -> bool:
    """Whether a head judges completions."""
    return dict(head.config.id2label) == CLASSES and head.config.pooling == POOLING


def judge_rows(head: SdmHead, features: Tensor, labels: Sequence[int]) -> tuple[Judged, Any]:
    """Verdicts on rows of which the class is known, and the head's `SdmOutput`."""
    output: Any = head(features)
    completions = is_verifier(head)
    known = (output.prediction >= 0).cpu().numpy()
    answers = torch.full_like(output.prediction, GOOD) if completions else output.prediction
    place = answers.clamp(min=0)
    takes = (output.prediction == answers).cpu().numpy()
    reasons = list(output.reason)
    if completions:
        pairs = zip(reasons, output.prediction.tolist(), strict=True)
        reasons = [PREDICTED_BAD if found not in (GOOD, -1) else word for word, found in pairs]
    judged = Judged(
        wanted=np.asarray(labels),
        answers=answers.cpu().numpy(),
        score=np.where(known, of_class(output.probs, place).cpu().numpy(), -1.0),
        plain=np.where(known, of_class(output.logits.softmax(1), place).cpu().numpy(), -1.0),
        probs=output.probs,
        predictions=output.prediction,
        rescaled=output.rescaled_similarity,
        admit=output.admit.cpu().numpy() & takes,
        admit_lower=output.admit_lower.cpu().numpy() & takes,
        similarity=output.similarity.cpu().numpy(),
        distance=output.distance.cpu().numpy(),
        reasons=reasons,
        completions=completions,
    )
    return judged, output


def rows_of_fit(
    head: SdmHead, features: Tensor, texts: Sequence[str], labels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows a head was fitted on, and would vouch for.

    Of its calibration rows a head keeps no text, so that these are told by label, prediction,
    similarity and distance; only where support rows are among the rows at all.

    Args:
        head: the head.
        features: (N, D).
        texts: N.
        labels: N.

    Returns:
        (N,), bool: the support has the row's text or features; and (N,), bool: it is a calibration
        row.
    """
    output: Any = head(features)
    known = {text for text in head.support_texts if text is not None}
    support = np.array([text in known for text in texts], dtype=bool)
    support |= are_twins(output.exemplars, output.nearest_distance).cpu().numpy()
    calibration = np.zeros(len(texts), dtype=bool)
    if support.any():
        rows = head.calibration
        columns = (rows.labels, rows.predictions, rows.similarity)
        kept: dict[tuple[float, ...], list[float]] = {}
        distances = rows.squared_distance.tolist()
        for *key, distance in zip(*(one.tolist() for one in columns), distances, strict=True):
            kept.setdefault(tuple(key), []).append(distance)
        columns = (output.prediction, output.similarity, output.distance_raw)
        rows_now = zip(labels, *(one.tolist() for one in columns), strict=True)
        for place, (*key, distance) in enumerate(rows_now):
            near = kept.get(tuple(key), ())
            calibration[place] = any(math.isclose(distance, one, rel_tol=1e-4) for one in near)
    return support, calibration & ~support


def judge_calibration(head: SdmHead) -> Judged | None:
    """Verdicts on the calibration rows, from what a head keeps of them.

    They chose weights and region, so that what is measured on them is too good. None for the
    universal estimator, of which a head keeps too little.
    """
    if head.config.estimator == "universal":
        return None
    rows = head.calibration
    completions = is_verifier(head)
    answers = torch.full_like(rows.predictions, GOOD) if completions else rows.predictions
    rescaled = rescaled_similarity(rows.similarity, of_class(rows.probs, rows.predictions))
    found = Evidence(rows.similarity, rows.squared_distance, rows.predictions)
    lists = distance_lists(found, rows.labels, rows.num_labels)
    admit = inside(head.region, rescaled, rows.probs, rows.predictions) & (rescaled >= 1)
    return Judged(
        wanted=rows.labels.cpu().numpy(),
        answers=answers.cpu().numpy(),
        score=of_class(rows.probs, answers).cpu().numpy(),
        plain=None,
        probs=rows.probs,
        predictions=rows.predictions,
        rescaled=rescaled,
        admit=(admit & (rows.predictions == answers)).cpu().numpy(),
        admit_lower=None,
        similarity=rows.similarity.cpu().numpy(),
        distance=distance_quantile(lists, rows.squared_distance).cpu().numpy(),
        reasons=None,
        completions=completions,
    )
