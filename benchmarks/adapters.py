"""Which adapter gets how far with how many trained numbers?

    python benchmarks/adapters.py --data FOLDER   # measures what is not there; an hour of one core
    python benchmarks/adapters.py --tasks python  # of clinc150, banking77, python
    python benchmarks/adapters.py --report        # writes docs/adapters.md and docs/adapters.png
    python benchmarks/adapters.py --tiny --csv x  # made-up data, seconds

clinc150 and banking77: accuracy of all-MiniLM-L6-v2 after few-shot training. Every adapter is in
the same two top layers, the layers below are computed once; the same linear head is trained beside
each. python: a small Llama that has learnt Shakespeare is adapted to the source of Python's
standard library; loss in nats a byte on other files. banking77 needs FOLDER/banking77/train.csv and
test.csv.

For each adapter the learning rate is the best on the validation rows of three half a decade apart,
and of more where the best is at an edge, with seed 0; then there are three seeds. Stage "explore"
has the settings of SNNK that were tried, on validation rows alone; "rate" the tries; "main" the
seeds; "cost" the time and memory of a step. Each is appended to results/adapters.csv as soon as it
is there, and is not done again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
from _adapter_fit import Outcome, Task
from _adapter_lm import python_task
from _adapter_methods import HEAD, Method
from _adapter_sets import COMPARED, EXPLORED
from _adapter_texts import banking, clinc, text_task
from _adapter_tiny import tiny_tasks
from _record import RESULTS, append, environment, peak_extra_mib, read
from adapters_report import write

CSV = RESULTS / "adapters.csv"
DOCS = Path(__file__).parents[1] / "docs"
EXPLORE, RATE, MAIN, COST = "explore", "rate", "main", "cost"
COLUMNS = (
    "adapter_parameters",
    "all_parameters",
    "rate",
    "head_rate",
    "seed",
    "valid",
    "test",
    "step_ms",
    "peak_mib",
    "seconds",
)
SEEDS = 3
# how often a grid of learning rates may grow
GROWTHS = 3
ROUNDS = 7
TEXTS = {"epochs": 3, "batch": 16}
TASKS: dict[str, Callable[[Path | None], Task]] = {
    "clinc150": lambda folder: _clinc(TEXTS | {"train": 5, "valid": 5, "test": 10}),
    "banking77": lambda folder: _banking(folder, TEXTS | {"train": 8, "valid": 8, "test": 20}),
    "python": lambda folder: python_task(
        {"steps": 100, "batch": 8, "length": 64, "train": 262144, "valid": 64, "test": 192}
    ),
}


def _clinc(plan: dict[str, Any]) -> Task:
    return text_task("clinc150", clinc(plan), plan)


def _banking(folder: Path | None, plan: dict[str, Any]) -> Task:
    if folder is None:
        raise SystemExit("banking77: give --data, a folder with banking77/train.csv and test.csv.")
    return text_task("banking77", banking(folder / "banking77", plan), plan)


class Figures:
    """The CSV: what is there is not measured again."""

    def __init__(self, path: Path, task: Task):
        self.path, self.task = path, task

    def rows(self, stage: str, method: Method) -> list[dict[str, str]]:
        """Those of a method with these settings, under this plan."""
        wanted = self._key(stage, method)
        return [row for row in read(self.path) if all(row[key] == wanted[key] for key in wanted)]

    def add(self, stage: str, method: Method, **found: Any) -> None:
        """Append one, and say so."""
        empty = dict.fromkeys(COLUMNS, "")
        row = {**self._key(stage, method), **empty, **found}
        append(self.path, [{**environment(), "peft": peft.__version__, **row}])
        shown = {key: value for key, value in found.items() if value != ""}
        print(f"{self.task.name} {stage} {method.label}: {shown}", flush=True)

    def _key(self, stage: str, method: Method) -> dict[str, str]:
        return {
            "stage": stage,
            "task": self.task.name,
            "plan": json.dumps(self.task.plan),
            "method": method.label,
            "settings": json.dumps(method.settings),
        }


def train(
    figures: Figures, stage: str, method: Method, rate: float, seed: int, tested: bool
) -> Outcome:
    """One run, and its row."""
    start = time.perf_counter()
    outcome = figures.task.run(method, rate, seed)
    test = outcome.test() if tested else None
    _add_run(figures, stage, method, rate, seed, outcome, test, time.perf_counter() - start)
    return outcome


def _add_run(
    figures: Figures,
    stage: str,
    method: Method,
    rate: float,
    seed: int,
    outcome: Outcome,
    test: float | None,
    seconds: float,
) -> None:
    figures.add(
        stage,
        method,
        adapter_parameters=outcome.adapter,
        all_parameters=outcome.whole,
        rate=rate,
        head_rate=getattr(figures.task, "head_rate", ""),
        seed=seed,
        valid=round(outcome.valid, 5),
        test="" if test is None else round(test, 5),
        seconds=round(seconds, 1),
    )


def search(figures: Figures, stage: str, method: Method) -> tuple[float, Outcome | None]:
    """The best learning rate on the validation rows, and what was trained with it if it was now."""
    sign = figures.task.sign
    known = {float(row["rate"]): float(row["valid"]) for row in figures.rows(stage, method)}
    outcomes: dict[float, Outcome] = {}
    centre, exponents = method.centre + figures.task.shift, [-1, 0, 1]

    def worth(rate: float) -> float:
        if rate not in known:
            outcomes[rate] = train(figures, stage, method, rate, 0, tested=False)
            known[rate] = outcomes[rate].valid
        # a training that went astray
        return sign * known[rate] if known[rate] == known[rate] else -float("inf")

    for growth in range(GROWTHS + 1):
        values = {k: worth(half_decade(centre + k)) for k in exponents}
        # of equal ones that nearest to the centre
        best = max(exponents, key=lambda k: (values[k], -abs(k)))
        if growth == GROWTHS or best not in (min(exponents), max(exponents)):
            break
        exponents.append(best + (1 if best == max(exponents) else -1))
    rate = half_decade(centre + best)
    return rate, outcomes.get(rate)


def half_decade(exponent: int) -> float:
    """The learning rate 10^(exponent / 2), as it is in the CSV."""
    return float(f"{10 ** (exponent / 2):.3g}")


def compare(figures: Figures, method: Method) -> None:
    """Choose the learning rate, then train with every seed."""
    rate, outcome = search(figures, RATE, method)
    if method.label == HEAD and hasattr(figures.task, "head_rate"):
        figures.task.head_rate = rate  # type: ignore[attr-defined]
    done = {int(row["seed"]) for row in figures.rows(MAIN, method)}
    if 0 not in done and outcome is not None:
        # that of the search is what seed 0 would give again
        _add_run(figures, MAIN, method, rate, 0, outcome, outcome.test(), 0.0)
        done.add(0)
    for seed in set(range(SEEDS)) - done:
        train(figures, MAIN, method, rate, seed, tested=True)


def measure_cost(figures: Figures, methods: Iterable[Method]) -> None:
    """Time of the processor and memory of a step; the methods take turns."""
    missing = [method for method in methods if not figures.rows(COST, method)]
    steps = {method.label: figures.task.step(method) for method in missing}
    memory, times = {}, {method.label: [] for method in missing}
    for label, step in steps.items():
        # the first makes the optimizer's state, which stays
        step()
        memory[label] = peak_extra_mib(step)
    for _ in range(ROUNDS):
        for label, step in steps.items():
            start = time.process_time()
            step()
            times[label].append(time.process_time() - start)
    for method in missing:
        spent = 1000 * median(times[method.label])
        peak = memory[method.label]
        figures.add(COST, method, step_ms=f"{spent:.1f}", peak_mib=f"{peak:.1f}")


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--stages", nargs="+", choices=[EXPLORE, MAIN, COST])
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is written")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="made-up data, to try the program")
    given = parser.parse_args()
    if given.report:
        print(write(read(given.csv), given.docs))
        return
    torch.set_num_threads(1)
    stages = given.stages or [EXPLORE, MAIN, COST]
    made = tiny_tasks() if given.tiny else {}
    for name in given.tasks:
        task = made[name] if given.tiny else TASKS[name](given.data)
        figures = Figures(given.csv, task)
        methods = COMPARED[name]
        # first, as the others need its rate
        compare(figures, methods[0])
        for method in EXPLORED.get(name, []) if EXPLORE in stages else []:
            search(figures, EXPLORE, method)
        for method in methods if MAIN in stages else []:
            compare(figures, method)
        if COST in stages:
            measure_cost(figures, methods)


if __name__ == "__main__":
    main()
