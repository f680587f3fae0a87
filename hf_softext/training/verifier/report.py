"""The report of an SDM head: one HTML page of tables and inline SVG, no scripts."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_softext.heads.sdm.diagnosis import (
    calibration_scores,
    diagnose,
    least_similarity,
    region_words,
)
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.output import REASONS, SdmOutput
from hf_softext.heads.sdm.verifier import PREDICTED_BAD
from hf_softext.training import html_page
from hf_softext.training.verifier import plots
from hf_softext.training.verifier.judged import Judged, judge_calibration
from hf_softext.version import __version__

# other accuracies that a page shows
_ALPHAS = (0.8, 0.85, 0.9, 0.95, 0.99)
# characters of a text, as a page shows it
_SHOWN = 300


@dataclass(frozen=True)
class MeasuredRows:
    """Rows that a head was not fitted on, for its report.

    Attributes:
        judged: the verdicts.
        output: the head's `SdmOutput`.
        texts: of each.
        source: where they are from.
        note: what goes on after their number: whether the fit has seen them.
    """

    judged: Judged
    output: Any
    texts: list[str]
    source: str
    note: str = ", which the fit has not seen."


def write_sdm_report(
    path: Path,
    name: str,
    head: SdmHead,
    test: MeasuredRows | None,
    facts: dict[str, Any],
    worst: int = 10,
    outside: MeasuredRows | None = None,
) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        path: of the file.
        name: of the head.
        head: the head.
        test: what it is measured on; None: its calibration rows, which flatter it.
        facts: how it was fitted, for the end of the page.
        worst: how many errors are shown with their neighbours.
        outside: rows of none of the head's classes, of which it should admit none.
    """
    judged = test.judged if test is not None else judge_calibration(head)
    parts = [html_page.paragraph(_summary(head)), *_measured(head, judged, test)]
    if outside is not None:
        parts += _out_of_scope(outside)
    parts += _region(head)
    if judged is not None:
        parts += _risk(head, judged) + _evidence(judged) + _alphas(head, judged)
    if test is not None:
        parts += _errors(head, test, worst)
    parts += [html_page.heading("Settings"), html_page.preformatted(json.dumps(facts, indent=1))]
    parts.append(html_page.paragraph(f"hf_softext {__version__}", note=True))
    staged = path.with_name(f"{path.name}.tmp")
    staged.write_text(html_page.page(f"{name}: SDM head", parts), encoding="utf-8")
    os.replace(staged, path)


def _summary(head: SdmHead) -> str:
    config, region = head.config, region_words(head)
    behind = (config.backbone or {}).get("name_or_path") or "features of unknown origin"
    # a path means nothing elsewhere
    behind = Path(behind).name if Path(behind).is_absolute() else behind
    names = [str(head.label_name(label)) for label in range(head.thresholds.numel())]
    classes = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return (
        f"Behind {behind}: {len(names)} classes ({classes}), {len(head.support_ids):,} training "
        f"rows to compare with, {len(head.calibration.labels):,} calibration rows. The accuracy to "
        f"hold in every class is {config.alpha:g}. {region[0].upper()}{region[1:]}."
    )


def _measured(head: SdmHead, judged: Judged | None, test: MeasuredRows | None) -> list[str]:
    if judged is None:
        return [
            html_page.paragraph(
                "The universal estimator keeps too little of its calibration rows to measure on "
                "them: give test data."
            )
        ]
    rows = [
        [name, *("nothing" if np.isnan(value) else f"{value:.3f}" for value in scores.values())]
        for name, scores in judged.scores(head.config.alpha).items()
    ]
    columns = ["", "accuracy", "share admitted"]
    if not judged.completions:
        columns += ["lowest accuracy of a class", "of a predicted class"]
    if test is not None:
        what = f"On {len(judged.wanted):,} rows of {test.source}{test.note}"
    else:
        what = (
            f"On the {len(judged.wanted):,} calibration rows, which chose the weights and the "
            "region: the figures flatter. Give test data for honest ones."
        )
    if judged.completions:
        what += " A row is a completion, and right if it is good."
    found = [html_page.heading("Measured"), html_page.paragraph(what)]
    found.append(html_page.table(columns, rows))
    if judged.plain is not None:
        note = "The last line is what to compare with: the same classifier with its softmax."
        found.append(html_page.paragraph(note, note=True))
    return found


def _out_of_scope(outside: MeasuredRows) -> list[str]:
    judged = outside.judged
    text = (
        f"On {len(outside.texts):,} rows of {outside.source} whose label is none of the head's "
        f"classes: {judged.admit.mean():.1%} are admitted"
    )
    if judged.admit_lower is not None:
        text += f", {judged.admit_lower.mean():.1%} by the lower bound"
    return [
        html_page.heading("Out of scope"),
        html_page.paragraph(f"{text}. Both should be 0."),
        *_reasons(judged),
    ]


def _reasons(judged: Judged) -> list[str]:
    if judged.reasons is None:
        return []
    words, rows = np.array(judged.reasons), []
    for reason in (*REASONS, PREDICTED_BAD):
        mask = words == reason
        if mask.any():
            rows.append([reason, f"{mask.sum():,}", f"{(~judged.right[mask]).sum():,}"])
    return [html_page.table(["reason", "rows", "of them wrong"], rows)]


def _region(head: SdmHead) -> list[str]:
    alpha, found = head.config.alpha, diagnose(head)
    candidates, thresholds = (one.cpu().numpy() for one in head.threshold_curve())
    parts = [
        html_page.heading("Search for the region"),
        html_page.paragraph(
            "For every candidate, from left to right: what the output of the true class reaches in "
            f"all but {1 - alpha:.3g} of the calibration rows of a class that are at least so "
            "similar. The first candidate at which every class reaches alpha is chosen."
        ),
    ]
    if len(candidates):
        names = [str(head.label_name(label)) for label in range(thresholds.shape[1])]
        similarity = calibration_scores(head).valid_similarity.cpu().numpy()
        parts.append(
            html_page.picture(
                plots.region_plot(
                    candidates, thresholds, names, similarity, alpha, least_similarity(head)
                )
            )
        )
    parts += [html_page.paragraph(text) for text in found.sentences(alpha)]
    rows = [
        [
            one.name,
            f"{one.rows:,}",
            f"{one.right:.3f}",
            f"{one.reached:.3f}",
            one.mistaken_for or "",
        ]
        for one in found.classes[:20]
    ]
    columns = ["class", "calibration rows", "predicted right", "highest threshold", "taken for"]
    parts.append(html_page.table(columns, rows))
    if len(found.classes) > len(rows):
        note = f"The hardest {len(rows)} of {len(found.classes)} classes."
        parts.append(html_page.paragraph(note, note=True))
    return parts


def _risk(head: SdmHead, judged: Judged) -> list[str]:
    return [
        html_page.heading("Risk against coverage"),
        html_page.paragraph(
            "Rows are answered from the most certain on; the lower a curve, the better its score "
            "tells right from wrong. Points are what the head admits."
        ),
        html_page.picture(plots.risk_plot(judged, head.config.alpha)),
    ]


def _evidence(judged: Judged) -> list[str]:
    return [
        html_page.heading("Similarity and distance"),
        html_page.picture(plots.evidence_plot(judged)),
        *_reasons(judged),
    ]


def _alphas(head: SdmHead, judged: Judged) -> list[str]:
    if head.config.estimator == "universal":
        return []
    scores, rows = calibration_scores(head), []
    for alpha in sorted({*_ALPHAS, head.config.alpha}):
        region = scores.region(alpha)
        admit = judged.admitted_in(region)
        least = float(region.min_similarity)
        right = f"{judged.right[admit].mean():.3f}" if admit.any() else "nothing"
        shown = "none" if least == float("inf") else f"{least:.4g}"
        rows.append([f"{alpha:g}", shown, f"{admit.mean():.3f}", right])
    return [
        html_page.heading("Other values of alpha"),
        html_page.paragraph(
            "head.recalibrate(alpha=...) changes it without a fit. A lower alpha is content with "
            "less similarity, but asks for an output that only a share alpha of the calibration "
            "rows of a class reaches, so that fewer rows may be admitted."
        ),
        html_page.table(["alpha", "least similarity", "share admitted", "accuracy"], rows),
    ]


def _errors(head: SdmHead, test: MeasuredRows, worst: int) -> list[str]:
    judged = test.judged
    wrong = np.nonzero(~judged.right)[0]
    # those that were admitted first, then the most certain ones
    order = np.lexsort((-judged.score[wrong], ~judged.admit[wrong]))
    chosen = wrong[order][:worst]
    parts = [html_page.heading("Worst errors and their nearest training rows")]
    if not len(chosen):
        return [*parts, html_page.paragraph("No row was answered wrongly.")]
    parts.append(
        html_page.paragraph(
            f"{len(wrong):,} rows are wrong, {int(judged.admit[wrong].sum()):,} of them were "
            "admitted. A neighbour of another label speaks against the answer. Where neighbours "
            "agree with a wrong answer, they may be labelled wrongly, or the row itself."
        )
    )
    picked = SdmOutput(
        prediction=test.output.prediction[chosen], exemplars=test.output.exemplars[chosen]
    )
    for row, near in zip(chosen, head.neighbours(picked), strict=True):
        verdict = "admitted" if judged.admit[row] else "refused"
        text = (
            f"{_cut(test.texts[row])}\n"
            f"true: {head.label_name(int(judged.wanted[row]))}, "
            f"answered: {head.label_name(int(judged.answers[row]))}, {verdict}, "
            f"score {judged.score[row]:.3f}, similarity {judged.similarity[row]:g}, "
            f"distance {judged.distance[row]:.3f}"
        )
        rows = [
            [
                _cut(one["text"] if one["text"] is not None else f"row {one['id']}"),
                str(one["label"]),
                str(one["predicted"]),
                f"{one['squared_distance']:.4g}",
            ]
            for one in near
        ]
        columns = ["nearest training row", "its label", "predicted", "squared distance"]
        parts += [html_page.preformatted(text), html_page.table(columns, rows)]
    return parts


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
