"""Why an SDM head admits little or nothing: which class is in the way, and what alpha would do."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_softext.heads.sdm.calibration import Scores, plain_scores, rescaled_scores
from hf_softext.heads.user_warning import warn_user

if TYPE_CHECKING:
    from hf_softext.heads.sdm.head import SdmHead

# alphas are tried in steps of a thousandth
_STEPS = 1000


class EmptyRegionWarning(UserWarning):
    """A head admits nothing."""


@dataclass(frozen=True)
class ClassDiagnosis:
    """A class on the calibration rows.

    Attributes:
        name: of the class.
        rows: how many calibration rows are of it.
        right: the share of them that is predicted right.
        reached: the highest threshold that it reaches at any candidate for the least similarity;
            below alpha, no region can be.
        mistaken_for: the class that most of its wrong predictions are of; None where all are right.
    """

    name: str
    rows: int
    right: float
    reached: float
    mistaken_for: str | None


@dataclass(frozen=True)
class Diagnosis:
    """What keeps the region small.

    Attributes:
        admits: whether there is a region.
        classes: the hardest first.
        highest_alpha: the highest alpha, to a thousandth, for which there is a region; None: not
            for any.
        nearest: the candidate at which the lowest threshold is highest, its class, and the
            threshold: what is in the way where each class by itself gets to alpha. None without a
            candidate.
        last: of a region, the class that was last to reach alpha; None where all did at once.
    """

    admits: bool
    classes: list[ClassDiagnosis]
    highest_alpha: float | None
    last: str | None = None
    nearest: tuple[float, str, float] | None = None

    def sentences(self, alpha: float) -> list[str]:
        """The diagnosis in words."""
        short = [one for one in self.classes if one.reached < alpha]
        found = []
        if self.admits:
            last = f", {self.last} being the last to reach it" if self.last else ""
            found.append(f"There is a region: every class is held at {alpha:g}{last}.")
        else:
            found.append(
                f"Nothing is admitted: no least similarity keeps every class at {alpha:g} on the "
                "calibration rows."
            )
            if self.nearest is None:
                found.append(
                    "No calibration row of any class is near enough to training rows of it to "
                    "count: train longer, or give more rows."
                )
                short = []
            for one in short[:5]:
                mistaken = f", mostly taken for {one.mistaken_for}" if one.mistaken_for else ""
                found.append(
                    f"{one.name} reaches {one.reached:.3f} at most: {one.right:.1%} of its "
                    f"{one.rows:,} rows are predicted right{mistaken}."
                )
            if not short and self.nearest is not None:
                least, name, threshold = self.nearest
                found.append(
                    f"Each class by itself reaches it, but never all at once. They come nearest at "
                    f"a least similarity of {least:.4g}, where {name} is in the way, at "
                    f"{threshold:.3f}: more of its rows, or more epochs or splits, may do."
                )
        if self.highest_alpha is None:
            found.append(
                "No alpha above 0.5 has a region: the features do not tell these classes apart, or "
                "there are too few rows."
            )
        else:
            found.append(
                f"The highest alpha that has a region is {self.highest_alpha:.3f}; "
                "head.recalibrate(alpha=...) changes it without a fit."
            )
        if not self.admits:
            lower = "" if self.highest_alpha is None else "a lower alpha, "
            found.append(
                f"What helps: {lower}more rows of the classes named, one class for two that are "
                "mistaken for one another, or a model that tells them apart."
            )
        return found


def warn_if_empty(head: "SdmHead") -> None:
    """Warn with `EmptyRegionWarning` where a head admits nothing; the text says why."""
    if not admits(head):
        warn_user(" ".join(diagnose(head).sentences(head.config.alpha)), EmptyRegionWarning)


def diagnose(head: "SdmHead") -> Diagnosis:
    """Look at the calibration rows and thresholds of a head."""
    candidates, thresholds = head.threshold_curve()
    count = head.thresholds.numel()
    # without a candidate no class reaches anything
    reached = thresholds.amax(0) if len(thresholds) else torch.zeros(count)
    labels, predictions = head.calibration.labels.cpu(), head.calibration.predictions.cpu()
    classes = []
    for label in range(count):
        found = predictions[labels == label]
        wrong = torch.bincount(found[found != label], minlength=count)
        classes.append(
            ClassDiagnosis(
                name=str(head.label_name(label)),
                rows=len(found),
                right=float((found == label).float().mean()) if len(found) else 0.0,
                reached=float(reached[label]),
                mistaken_for=head.label_name(int(wrong.argmax())) if bool(wrong.any()) else None,
            )
        )
    classes.sort(key=lambda one: (one.reached, one.right))
    last = None
    chosen = int((candidates < head.region.min_similarity.cpu()).sum())
    if 0 < chosen < len(candidates):
        last = head.label_name(int(thresholds[chosen - 1].argmin()))
    nearest = None
    if len(candidates):
        place = int(thresholds.amin(1).argmax())
        label = int(thresholds[place].argmin())
        name = str(head.label_name(label))
        nearest = float(candidates[place]), name, float(thresholds[place, label])
    return Diagnosis(admits(head), classes, highest_alpha(head), last, nearest)


def least_similarity(head: "SdmHead") -> float:
    """What a row's rescaled similarity must reach to be admitted; infinity: nothing is."""
    found = float(head.region.min_similarity)
    if head.config.estimator == "universal":
        found = max(found, float(head.spread_similarity))
    return found


def region_words(head: "SdmHead") -> str:
    """The least similarity, and what it means; "nothing is admitted" without one."""
    least = least_similarity(head)
    if least == float("inf"):
        return "nothing is admitted"
    found = f"least similarity {least:.4g}"
    # of the universal estimator it is no count of rows
    if head.config.estimator == "universal":
        return found
    return (
        f"{found}: of a prediction that is admitted, at least {math.ceil(least)} of the nearest "
        "training rows, without a break, are of its class and were predicted right"
    )


def calibration_scores(head: "SdmHead") -> Scores:
    """What the region of a head is looked for in."""
    if head.config.estimator == "universal":
        return rescaled_scores(head.calibration, head.rescaling_weight)[0]
    return plain_scores(head.calibration)


def admits(head: "SdmHead") -> bool:
    """Whether a calibration row is similar enough for the region in force.

    The universal estimator adds the spread over splits, which may ask for more than any row has.
    """
    return bool((calibration_scores(head).valid_similarity >= least_similarity(head)).any())


def highest_alpha(head: "SdmHead") -> float | None:
    """The highest alpha above 0.5, to a thousandth, that admits something; None: none does.

    A region for one alpha is one for every lower one, so that halving finds the highest that has
    one. The universal estimator's spread over splits is not so orderly: from there on downwards
    every step is looked at. The head does not change.
    """
    scores = calibration_scores(head)
    low, high = _STEPS // 2, _STEPS + 1
    # low has a region or is the bound, high has none
    while high - low > 1:
        middle = (low + high) // 2
        empty = bool(scores.region(middle / _STEPS).min_similarity.isinf())
        low, high = (low, middle) if empty else (middle, high)
    copy = deepcopy(head)
    for step in range(low, _STEPS // 2, -1):
        copy.find_region(step / _STEPS)
        if admits(copy):
            return step / _STEPS
    return None
