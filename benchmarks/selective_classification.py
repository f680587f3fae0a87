"""Which predictions may be relied on, also when the data have shifted: SDM heads and their peers.

    python benchmarks/selective_classification.py --data FOLDER    # runs what is not in the CSV yet
    python benchmarks/selective_classification.py --report         # prints the tables

Tasks: CLINC150's 150 intents and its 15 banking intents on frozen all-MiniLM-L6-v2 features, and
scikit-learn's digits. Shifts with right answers: typos; noise, a pixel, 90 degrees. Shifts without,
of which nothing should be admitted: CLINC150's out-of-scope queries, Banking77 (some of whose
queries a banking intent does fit), intents not learned, scattered pixels, uniform noise. FOLDER has
clinc150/data_full.json and banking77/test.csv; without it these two sets are left out.

Every rule sees the same rows: half to fit a logistic regression, whose penalty the other half
chooses, which also calibrates. The gates turn away the 5 % of calibration rows that are farthest
out. Conformal sets are MAPIE's. Appends to results/selective.csv, a row for each task, rule, test
set and seed.
"""

import argparse
import math
import os
from pathlib import Path
from statistics import mean

from _record import RESULTS, append, environment, markdown, read
from _selective_rules import MAPIE, rules
from _selective_tasks import SOURCES, Task, load

from hf_softext.metrics.selective import auroc, selective_accuracy

CSV = RESULTS / "selective.csv"
TASKS = ("digits", "banking", "intents")
MEASURES = ("accuracy", "admitted", "lowest_by_class", "lowest_by_prediction", "auroc")


def measure(name: str, task: Task, alpha: float, seed: int, path: Path, **sdm: int) -> None:
    """Run every rule on every test set of a task, and write down what came out."""
    first = next(iter(task.tests))
    rows = []
    for rule, seconds, judge in rules(task.fit, alpha, seed, **sdm):
        inside = judge(task.tests[first].x)
        for test, part in task.tests.items():
            found = judge(part.x)
            scores = dict.fromkeys(MEASURES, math.nan)
            if part.y is None:
                scores["admitted"] = found.admit.float().mean().item()
                both = [*inside.confidence.tolist(), *found.confidence.tolist()]
                kinds = [1] * len(inside.confidence) + [0] * len(found.confidence)
                scores["auroc"] = auroc(both, kinds)
            else:
                scores |= selective_accuracy(
                    found.prediction.numpy(), part.y.numpy(), found.admit.numpy()
                )
            rows.append(
                {
                    **environment(),
                    "task": name,
                    "alpha": alpha,
                    "rule": rule,
                    "test": test,
                    "seed": seed,
                    "rows": len(part.x),
                    **{key: f"{value:.4f}" for key, value in scores.items()},
                    "fit_seconds": f"{seconds:.1f}",
                    "load": f"{os.getloadavg()[0]:.1f}",
                }
            )
    append(path, rows)


def report(path: Path) -> str:
    """The tables, a mean over seeds in every cell."""
    found = read(path)
    text = []
    for task in dict.fromkeys(row["task"] for row in found):
        mine = [row for row in found if row["task"] == task]
        tests = list(dict.fromkeys(row["test"] for row in mine))
        seeds = sorted({row["seed"] for row in mine})
        header = ["rule", *tests, "seconds"]
        lines = []
        for rule in dict.fromkeys(row["rule"] for row in mine):
            chosen = [row for row in mine if row["rule"] == rule]
            cells = [_cell([row for row in chosen if row["test"] == test]) for test in tests]
            seconds = mean(float(row["fit_seconds"]) for row in chosen)
            lines.append([rule, *cells, f"{seconds:.0f}"])
        text += [f"**{task}**, alpha {mine[0]['alpha']}, seeds {', '.join(seeds)}", ""]
        text += [markdown(header, lines), ""]
    text.append(
        "Sets with right answers: accuracy of the admitted / share admitted (lowest accuracy of a "
        "class / of a prediction). Sets without: share admitted; area under the curve against the "
        "test set. R: nothing was admitted."
    )
    return "\n".join(text)


def _cell(rows: list[dict[str, str]]) -> str:
    def average(name: str) -> float:
        values = [float(row[name]) for row in rows]
        values = [value for value in values if not math.isnan(value)]
        return mean(values) if values else math.nan

    admitted = average("admitted")
    if not math.isnan(average("auroc")):
        return f"{admitted:.3f}; {average('auroc'):.3f}"
    if admitted == 0:
        return "R"
    accuracy, by_class, by_prediction = (
        average(name) for name in ("accuracy", "lowest_by_class", "lowest_by_prediction")
    )
    return f"{accuracy:.3f} / {admitted:.3f} ({by_class:.2f} / {by_prediction:.2f})"


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of " + "; ".join(SOURCES.values()))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--alpha", type=float, default=0.95)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", type=int, default=3, help="of SDM")
    parser.add_argument("--epochs", type=int, default=100, help="of SDM")
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    args = parser.parse_args()
    if not args.report:
        if not MAPIE:
            print("no conformal rows: pip install mapie")
        done = {(row["task"], row["alpha"], row["seed"]) for row in read(args.out)}
        for seed in args.seeds:
            for name in args.tasks:
                if (name, str(args.alpha), str(seed)) not in done:
                    task = load(name, seed, args.data)
                    sdm = {"num_splits": args.splits, "epochs": args.epochs}
                    measure(name, task, args.alpha, seed, args.out, **sdm)
                    print(f"{name}, seed {seed}: done", flush=True)
    print(report(args.out))


if __name__ == "__main__":
    main()
