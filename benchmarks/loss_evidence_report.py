"""The page of `loss_evidence.py`: what the papers say, and what its figures say."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from _loss_texts import HEAD, TEXTS
from _record import markdown
from scipy import stats

PICTURE = (
    "![Differences to the baselines](../benchmarks/results/loss_evidence.svg)\n\n"
    "Differences to the baseline of each experiment, in points, with the 95 % interval over seeds; "
    "the axis is logarithmic beyond 2. Green is better, red is worse, gray is not told apart."
)
BETTER, WORSE, NEITHER = "better", "worse", "not told apart"
Rows = list[dict[str, str]]


def verdict(gaps: list[float], rows: tuple[float, float] | None) -> tuple[float, str]:
    """The half-width over seeds, and which of the three words a difference deserves.

    Args:
        gaps: the difference to the baseline of each seed.
        rows: the interval over test rows, where there is one.
    """
    if len(gaps) < 2:
        return math.nan, NEITHER
    half = float(stats.t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps))
    middle = mean(gaps)
    low, high = rows or (-math.inf, math.inf)
    if middle - half > 0 and low > 0:
        return half, BETTER
    if middle + half < 0 and high < 0:
        return half, WORSE
    return half, NEITHER


class Table:
    """The figures of one setting of one experiment.

    Args:
        rows: of the CSV.
        baseline: the loss that stands first.
        bounds: what is no rival of the losses, and gets no word.
    """

    def __init__(self, rows: Rows, baseline: str, bounds: tuple[str, ...] = ()):
        self.rows = rows
        self.bounds = bounds
        tested = [row for row in rows if row["split"] == "test"]
        self.losses = list(dict.fromkeys([baseline, *(row["loss"] for row in tested)]))
        self.seeds = len({row["seed"] for row in tested})
        # tests come as they are chosen, tries in the order of the experiment
        self.measures = list(dict.fromkeys(row["measure"] for row in rows))
        self.tested = tested
        keys = Counter((row["loss"], row["measure"], row["seed"]) for row in tested)
        if keys and max(keys.values()) > 1:
            raise ValueError(
                f"{max(keys, key=keys.__getitem__)} was measured twice: its tries were changed; "
                "take the rows of what is no longer chosen out of the file."
            )

    def values(self, loss: str, measure: str) -> dict[str, float]:
        """By seed."""
        return {
            row["seed"]: float(row["value"])
            for row in self.tested
            if (row["loss"], row["measure"]) == (loss, measure)
        }

    def interval(self, loss: str, measure: str, seeds: int) -> tuple[float, float] | None:
        """Over the rows of the test split, of the mean over so many seeds."""
        wanted = {"loss": loss, "measure": measure, "split": "test rows"}
        wanted["seed"] = f"0 to {seeds - 1}"
        for row in self.rows:
            if all(row[key] == value for key, value in wanted.items()):
                return float(row["low"]), float(row["high"])
        return None

    def gaps(self, loss: str, other: str, measure: str) -> list[float]:
        """The difference of two losses in each seed that both have."""
        mine, theirs = self.values(loss, measure), self.values(other, measure)
        return [mine[seed] - theirs[seed] for seed in mine if seed in theirs]

    def against(self, loss: str, other: str) -> str:
        """A line on two losses, with the interval over seeds alone."""
        parts = []
        for measure in self.measures:
            gaps = self.gaps(loss, other, measure)
            if gaps:
                half, _ = verdict(gaps, None)
                parts.append(f"{measure} {100 * mean(gaps):+.1f} ± {100 * half:.1f}")
        return f"{loss}, less {other} (seeds alone): {'; '.join(parts)}." if parts else ""

    def compare(self, loss: str, measure: str) -> tuple[float, float, float, str] | None:
        """Difference to the baseline, its two half-widths, and a word."""
        gaps = self.gaps(loss, self.losses[0], measure)
        if loss == self.losses[0] or not gaps:
            return None
        rows = self.interval(loss, measure, len(gaps))
        half, word = verdict(gaps, rows)
        return mean(gaps), half, (rows[1] - rows[0]) / 2 if rows else math.nan, word

    def judged(self) -> Iterable[tuple[str, str, tuple[float, float, float, str]]]:
        """Loss, measure and comparison of each that gets a word."""
        for loss in self.losses:
            for measure in self.measures:
                found = self.compare(loss, measure)
                if found and loss not in self.bounds:
                    yield loss, measure, found

    def cell(self, loss: str, measure: str) -> str:
        """Mean, difference, half-widths, word."""
        found = self.values(loss, measure)
        if not found:
            return ""
        text, compared = f"{100 * mean(found.values()):.1f}", self.compare(loss, measure)
        if compared is None:
            return text
        gap, seeds, rows, word = compared
        text += f"; {100 * gap:+.1f} ± {100 * seeds:.1f} ± {100 * rows:.1f}"
        silent = word == NEITHER or loss in self.bounds
        return text if silent else f"{text} **{word}**"

    def chosen(self, loss: str) -> str:
        """The tries that were best for some measure."""
        tried = [(r["knobs"], r["rate"]) for r in self.tested if r["loss"] == loss]
        return "; ".join(
            ", ".join([*(f"{k} {v}" for k, v in knobs_of(knobs).items()), self.rate(loss, rate)])
            for knobs, rate in dict.fromkeys(tried)
        )

    def rate(self, loss: str, rate: str) -> str:
        """A chosen learning rate; said to be at an end, it might have been chosen beyond."""
        known = {float(row["rate"]) for row in self.validated(loss)}
        ends = {min(known): " (lowest)", max(known): " (highest)"} if len(known) > 1 else {}
        return f"rate {rate}{ends.get(float(rate), '')}"

    def validated(self, loss: str) -> Rows:
        """The rows of its tries."""
        return [r for r in self.rows if (r["loss"], r["split"]) == (loss, "validation")]

    def tries(self, loss: str) -> int:
        """How many there were to choose from."""
        return max(len({(row["knobs"], row["rate"]) for row in self.validated(loss)}), 1)

    def fit(self, loss: str) -> str:
        """The share of the training labels that the model reproduces, in %."""
        found = [
            float(row["fit"])
            for row in self.tested
            if row["loss"] == loss and row["fit"] not in ("", "nan")
        ]
        return f"{100 * mean(found):.0f}" if found else ""

    def markdown(self) -> str:
        """The table."""
        fits = any(self.fit(loss) for loss in self.losses)
        header = ["loss", *self.measures, *(["fits its labels"] if fits else []), "tries", "chosen"]
        body = []
        for loss in self.losses:
            cells = [self.cell(loss, measure) for measure in self.measures]
            fit = [self.fit(loss)] if fits else []
            body.append([loss, *cells, *fit, self.tries(loss), self.chosen(loss)])
        return markdown(header, body)


def knobs_of(text: str) -> dict[str, Any]:
    """The knobs of a row, without what every try of the loss has."""
    return {k: v for k, v in json.loads(text).items() if k not in ("base", "level", "metric")}


def groups(rows: Rows, *keys: str) -> dict[tuple[str, ...], Rows]:
    """Rows by the values of some columns, in the order in which they came."""
    found: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def summary(tables: Iterable[tuple[str, Table]]) -> str:
    """How often each loss was better or worse, by experiment."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for experiment, table in tables:
        for loss, _, (*_, word) in table.judged():
            counts.setdefault((experiment, loss), Counter())[word] += 1
    body = [
        [experiment, loss, *(of[word] for word in (BETTER, WORSE, NEITHER))]
        for (experiment, loss), of in counts.items()
    ]
    return markdown(["experiment", "loss", BETTER, WORSE, NEITHER], body)


def tables_of(rows: Rows) -> list[tuple[str, str, Table]]:
    """Experiment, setting and figures, in the order of the page."""
    return [
        (experiment, setting, Table(own, text.baseline, text.bounds))
        for experiment, text in TEXTS.items()
        for (name, setting, _), own in groups(rows, "experiment", "setting", "plan").items()
        if name == experiment and any(row["split"] == "test" for row in own)
    ]


def report(rows: Rows) -> str:
    """The page."""
    tables = tables_of(rows)
    if not tables:
        return "Nothing was measured yet.\n"
    cells = sum(len(list(table.judged())) for _, _, table in tables)
    parts = [
        HEAD.format(cells=cells),
        "## In short",
        summary((experiment, table) for experiment, _, table in tables),
        PICTURE,
    ]
    for experiment in dict.fromkeys(name for name, _, _ in tables):
        text = TEXTS[experiment]
        parts += [f"## {text.title} (`--only {experiment}`)", f"**Claimed.** {text.claim}"]
        parts.append(f"**Done.** {text.done}")
        for name, setting, table in tables:
            if name == experiment:
                parts += [f"### {setting}, {table.seeds} seeds", table.markdown()]
                parts += [table.against(*pair) for pair in text.rivals]
                parts.append(f"Plan: {table.rows[0]['plan']}.")
        parts.append(f"**Seen.** {text.seen}")
    last = rows[-1]
    keys = ("date", "device", "torch", "transformers", "hf_softext")
    parts.append("Measured: " + ", ".join(f"{key} {last[key]}" for key in keys) + ".")
    return "\n\n".join(part for part in parts if part) + "\n"
