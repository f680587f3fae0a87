"""Do the losses do what their papers claim, on real data, against a baseline that was tuned too?

    python benchmarks/loss_evidence.py --data FOLDER    # measures what is not there; an hour of CPU
    python benchmarks/loss_evidence.py --only noise     # one experiment; see below
    python benchmarks/loss_evidence.py --report         # writes docs/loss_evidence.md, prints it
    python benchmarks/loss_evidence.py --plot           # results/loss_evidence.svg, with matplotlib

Texts are embeddings of all-MiniLM-L6-v2, which stays FROZEN but for the distillation: a head is
trained on them with each loss, by the same optimizer for as many epochs in the same batches. Each
loss has as many tries. For each loss and measure the learning rate and the loss's own knob are
those of the best try on the validation split, with seeds that are used for nothing else; then they
are trained again with other seeds and measured on the test split. Every try is kept. noise,
untuned, distillation, bags and a part of imbalance need nothing more; the others need
FOLDER/goemotions ({goemotions}) and FOLDER/mnist ({mnist}).

Two intervals stand beside a difference to the baseline: of the paired differences over the seeds (t
distribution), and over the rows of the test split (bootstrap of the mean over the seeds). Each run
is appended to results/loss_evidence.csv as soon as it is done, and is not done again.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _loss_data as data
import torch
from _loss_fit import Result, Task
from _loss_pixels import adversarial
from _loss_rare import imbalance, multilabel
from _loss_students import DISTILL
from _loss_tasks import BAGS, NOISE, UNTUNED
from _record import RESULTS, append, environment, read
from loss_evidence_report import report, tables_of
from safetensors.torch import load_file, save_file
from torch import Tensor

CSV = RESULTS / "loss_evidence.csv"
PICTURE = RESULTS / "loss_evidence.svg"
PAGE = Path(__file__).parents[1] / "docs" / "loss_evidence.md"
EXPERIMENTS = (
    "noise",
    "untuned",
    "multilabel",
    "imbalance",
    "adversarial",
    "distillation",
    "bags",
)
# the first one of the tries; the tests have 0, 1, 2, ...
CHOICE_SEED = 100
DRAWS = 1000


def find_tasks(folder: Path | None) -> dict[str, Task]:
    """The experiments whose data is there, by name."""
    found = {"noise": NOISE, "untuned": UNTUNED, "distillation": DISTILL, "bags": BAGS}
    texts, images = ((folder / name if folder else None) for name in ("goemotions", "mnist"))
    texts = texts if texts and texts.exists() else None
    found["imbalance"] = imbalance(texts)
    if texts:
        found["multilabel"] = multilabel(texts)
    if images and images.exists():
        found["adversarial"] = adversarial(images)
    return {name: found[name] for name in EXPERIMENTS if name in found}


class Run:
    """A setting of an experiment: what was measured of it, and what is still to be."""

    def __init__(self, experiment: str, task: Task, setting: str, csv: Path):
        self.experiment, self.task, self.setting, self.csv = experiment, task, setting, csv
        self.own = {"experiment": experiment, "setting": setting, "plan": task.plan}
        self.known = [row for row in read(csv) if self.own.items() <= row.items()]

    def rows(self, **wanted: Any) -> list[dict[str, str]]:
        """What is known already."""
        named = {key: str(value) for key, value in wanted.items()}
        return [row for row in self.known if named.items() <= row.items()]

    def keep(self, measures: Iterable[str], **row: Any) -> None:
        """Append a row for each measure, where a value may depend on it."""
        here = environment()
        found = []
        for measure in measures:
            own = {key: value(measure) if callable(value) else value for key, value in row.items()}
            found.append({**self.own, "measure": measure, **own, **here})
        append(self.csv, found)
        self.known += [{key: str(value) for key, value in row.items()} for row in found]

    def train(self, label: str, knobs: dict[str, Any], rate: float, seed: int) -> dict[str, Result]:
        """One run, said aloud."""
        start = time.perf_counter()
        contender = self.task.contenders[label]
        setting = self.task.settings[self.setting]
        found = self.task.run(setting, contender, knobs, rate, seed)
        values = ", ".join(f"{self.value(m, r.counts):.4f}" for m, r in found.items())
        what = f"{self.experiment}, {self.setting}: {label} {knobs or ''} rate {rate} seed {seed}"
        print(f"{what}: {values} ({time.perf_counter() - start:.1f} s)", flush=True)
        return found

    def value(self, measure: str, counts: Tensor) -> float:
        """A measure of all rows."""
        return self.task.measures[measure](counts.double().sum(0)).item()

    def score(self, label: str, knobs: dict[str, Any], rate: float, seed: int) -> dict[str, float]:
        """For each measure what a try is worth on the validation split."""
        key = {"loss": label, "split": "validation", "seed": seed}
        key |= {"knobs": json.dumps(knobs), "rate": rate}
        known = {row["measure"]: float(row["value"]) for row in self.rows(**key)}
        if known.keys() != self.task.measures.keys():
            found = self.train(label, knobs, rate, seed)
            known = {measure: result.score for measure, result in found.items()}
            self.keep(
                self.task.measures,
                **key,
                value=lambda measure, of=known: f"{of[measure]:.6f}",
                low="",
                high="",
                fit=lambda measure, of=found: f"{of[measure].fit:.4f}",
            )
        return known

    def choose(self, label: str) -> dict[str, tuple[dict[str, Any], float]]:
        """For each measure the try that does best on the validation split; of equals the first."""
        tries = self.task.contenders[label].tries
        if len(tries) == 1:
            return dict.fromkeys(self.task.measures, tries[0])
        scores: dict[str, list[float]] = {measure: [] for measure in self.task.measures}
        for knobs, rate in tries:
            seeds = range(CHOICE_SEED, CHOICE_SEED + self.task.choices)
            known = [self.score(label, knobs, rate, seed) for seed in seeds]
            for measure in scores:
                scores[measure].append(sum(of[measure] for of in known) / len(known))
        return {m: tries[max(range(len(tries)), key=of.__getitem__)] for m, of in scores.items()}

    def test(self, label: str, seed: int) -> None:
        """The chosen tries with another seed, on the test split."""
        chosen = self.choose(label)
        for knobs, rate in self.task.contenders[label].tries:
            key = {"loss": label, "split": "test", "seed": seed}
            key |= {"knobs": json.dumps(knobs), "rate": rate}
            mine = [measure for measure in chosen if chosen[measure] == (knobs, rate)]
            known = {row["measure"] for row in self.rows(**key)}
            missing = [measure for measure in mine if measure not in known]
            if not missing:
                continue
            found = self.train(label, knobs, rate, seed)
            for measure in missing:
                path = self.path(label, measure, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file({"counts": found[measure].counts.float().contiguous()}, path)
            self.keep(
                missing,
                **key,
                value=lambda measure, of=found: f"{self.value(measure, of[measure].counts):.6f}",
                low="",
                high="",
                fit=lambda measure, of=found: f"{of[measure].fit:.4f}",
            )

    def path(self, label: str, measure: str, seed: int) -> Path:
        """Where the counts of a test are."""
        name = "-".join([self.experiment, self.setting, label, measure, str(seed)])
        return data.CACHE / "rows" / f"{name.replace(' ', '_').replace('/', '_')}.safetensors"

    def counts(self, label: str, measure: str, seeds: int) -> list[Tensor] | None:
        """The counts of each seed, where they are those of the figures that were kept."""
        found = []
        for seed in range(seeds):
            key = {"loss": label, "split": "test", "seed": seed, "measure": measure}
            row, path = self.rows(**key), self.path(label, measure, seed)
            if len(row) != 1 or not path.exists():
                return None
            found.append(load_file(path)["counts"].double())
            if abs(self.value(measure, found[-1]) - float(row[0]["value"])) > 1e-5:
                return None
        return found

    def bootstrap(self, label: str, seeds: int) -> None:
        """What other test rows might have said of the difference to the baseline."""
        for measure in self.task.measures:
            key = {"loss": label, "split": "test rows", "seed": f"0 to {seeds - 1}"}
            if self.rows(**key, measure=measure):
                continue
            mine = self.counts(label, measure, seeds)
            theirs = self.counts(self.task.baseline, measure, seeds)
            if mine is None or theirs is None:
                continue
            difference = resampled(self.task, measure, mine) - resampled(self.task, measure, theirs)
            edges = difference.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
            gap = [
                self.value(measure, a) - self.value(measure, b)
                for a, b in zip(mine, theirs, strict=True)
            ]
            low, high = (f"{edge:.6f}" for edge in edges.tolist())
            middle = f"{sum(gap) / len(gap):.6f}"
            self.keep([measure], **key, knobs="", rate="", value=middle, low=low, high=high, fit="")


def resampled(task: Task, measure: str, counts: list[Tensor]) -> Tensor:
    """(DRAWS,): a measure, averaged over seeds, of test rows drawn with replacement."""
    rows = len(counts[0])
    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(rows, (DRAWS, rows), generator=random)
    often = torch.zeros(DRAWS, rows, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1, 1, dtype=torch.float64).expand_as(drawn)
    )
    return torch.stack([task.measures[measure](often @ of) for of in counts]).mean(0)


def measure(experiment: str, task: Task, seeds: int, csv: Path) -> None:
    """What is missing of an experiment."""
    for setting in task.settings:
        run = Run(experiment, task, setting, csv)
        for label in task.contenders:
            for seed in range(seeds):
                run.test(label, seed)
            if label != task.baseline:
                run.bootstrap(label, seeds)


def main() -> None:
    """Measure, keep, write the page."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(**data.SOURCES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="FOLDER with goemotions/ and mnist/")
    parser.add_argument(
        "--cache", type=Path, default=data.CACHE, help="FOLDER for embeddings and counts"
    )
    parser.add_argument("--only", nargs="+", default=EXPERIMENTS, choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=3, help="tests of each loss")
    parser.add_argument("--report", action="store_true", help="write and print the page")
    parser.add_argument("--plot", action="store_true", help="draw what is in the CSV")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data.CACHE = given.cache
    if given.plot:
        from loss_evidence_plot import save_plot

        save_plot(tables_of(read(CSV)), PICTURE)
    if not given.report and not given.plot:
        tasks = find_tasks(given.data)
        for name in given.only:
            if name in tasks:
                measure(name, tasks[name], given.seeds, CSV)
            else:
                print(f"{name} is left out: --data has no files for it.")
    if given.report:
        page = report(read(CSV))
        PAGE.write_text(page, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
