"""The page and the picture of `adapters.py`, from its CSV."""

from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from _adapter_words import (
    CHOSEN,
    COSTS,
    ENOUGH,
    EQUAL_SIZE,
    EXPLORED,
    FIFTH,
    FRONT,
    HEAD_OF_PAGE,
    READINGS,
)
from _record import markdown
from matplotlib import colormaps
from matplotlib.figure import Figure

# how far apart numbers of parameters may be to be called equal
EQUAL = 0.15
# of a t distribution with 2 degrees of freedom, 97.5 %
T2 = 4.303
SNNK = "SNNK"
PAGE, PICTURE = "adapters.md", "adapters.png"
Lines = list[dict[str, str]]


class Shown(NamedTuple):
    """How a task is written: title, name of the measure, factor, digits, and which way is up."""

    title: str
    measure: str
    factor: float
    digits: int
    sign: int


TASKS = {
    "clinc150": Shown("CLINC150", "accuracy, %", 100, 1, 1),
    "banking77": Shown("Banking77", "accuracy, %", 100, 1, 1),
    "python": Shown("Shakespeare to Python", "loss, nats a byte", 1, 3, -1),
}


class Result(NamedTuple):
    """A method on a task: the test measure by seed."""

    label: str
    parameters: int
    trained: int
    rate: str
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.by_seed.values())


def results(lines: Lines, task: str) -> list[Result]:
    """The last measurement of each method."""
    found: dict[str, Result] = {}
    for line in lines:
        if line["stage"] == "main" and line["task"] == task:
            sizes = int(line["adapter_parameters"]), int(line["all_parameters"])
            known = found.get(line["method"])
            # another rate or size is another measurement
            if known is None or (known[1:3], known.rate) != (sizes, line["rate"]):
                known = Result(line["method"], *sizes, line["rate"], {})
                found[line["method"]] = known
            known.by_seed[int(line["seed"])] = float(line["test"])
    return list(found.values())


def front(found: Iterable[Result], sign: int) -> set[str]:
    """Those that no other beats with as few parameters."""
    found = list(found)

    def beaten(one: Result, other: Result) -> bool:
        better = sign * (other.mean - one.mean)
        fewer = other.parameters < one.parameters
        return other.parameters <= one.parameters and (better > 0 or (better == 0 and fewer))

    return {one.label for one in found if not any(beaten(one, other) for other in found)}


def gap(one: Result, other: Result, sign: int) -> tuple[float, float]:
    """How much better the first is over the common seeds, and the standard error of that."""
    seeds = one.by_seed.keys() & other.by_seed.keys()
    gaps = [sign * (one.by_seed[seed] - other.by_seed[seed]) for seed in seeds]
    return mean(gaps), stdev(gaps) / sqrt(len(gaps)) if len(gaps) > 1 else float("nan")


def main_table(lines: Lines, task: str) -> str:
    """Every method, by its number of parameters."""
    shown, found = TASKS[task], results(lines, task)
    on_front = front(found, shown.sign)
    cost = {
        line["method"]: (line["step_ms"], line["peak_mib"])
        for line in lines
        if line["stage"] == "cost" and line["task"] == task
    }
    rows = []
    for one in sorted(found, key=lambda x: (x.parameters, x.label)):
        values = [shown.factor * value for value in one.by_seed.values()]
        spread = f" ± {stdev(values):.{shown.digits}f}" if len(values) > 1 else ""
        rows.append(
            [
                one.label,
                f"{one.parameters:,}",
                f"{one.trained:,}",
                one.rate,
                f"{mean(values):.{shown.digits}f}{spread}",
                "yes" if one.label in on_front else "",
                *cost.get(one.label, ("", "")),
            ]
        )
    header = ["method", "adapter", "all trained", "rate", shown.measure, "front", "ms", "MiB"]
    return markdown(header, rows)


def equal_table(lines: Lines, task: str) -> str:
    """SNNK against peers of as many parameters; positive where SNNK is better."""
    shown, found = TASKS[task], results(lines, task)
    rows = []
    for own in sorted((x for x in found if SNNK in x.label), key=lambda x: x.parameters):
        for peer in found:
            near = abs(peer.parameters / own.parameters - 1) <= EQUAL
            if SNNK not in peer.label and near:
                difference, error = gap(own, peer, shown.sign)
                rows.append(
                    [
                        own.label,
                        f"{own.parameters:,}",
                        peer.label,
                        f"{peer.parameters:,}",
                        _signed(difference, T2 * error, shown),
                        _verdict(difference, T2 * error),
                    ]
                )
    return markdown(["SNNK", "", "peer", "", "SNNK better by", ""], rows)


def fifth_table(lines: Lines, task: str) -> str:
    """Each peer against the best SNNK, and the best other peer, of at most a fifth of its size."""
    shown, found = TASKS[task], results(lines, task)
    rows = []
    for peer in sorted(found, key=lambda x: x.parameters):
        if SNNK in peer.label:
            continue
        cells = []
        for wanted in (True, False):
            small = [
                x
                for x in found
                if (SNNK in x.label) is wanted and 0 < 5 * x.parameters <= peer.parameters
            ]
            if not small:
                cells += ["none", "", ""]
                continue
            best = max(small, key=lambda x: shown.sign * x.mean)
            share = f"{peer.parameters / best.parameters:.1f}x fewer"
            reached = "yes" if _reaches(best, peer, shown.sign) else "no"
            difference = _signed(*gap(best, peer, shown.sign), shown)
            cells += [f"{best.label}, {share}", difference, reached]
        if cells[0] != "none":
            rows.append([peer.label, f"{peer.parameters:,}", *cells])
    header = ["peer", "", "best SNNK of a fifth", "", "reaches it", "best peer of a fifth", ""]
    return markdown([*header, "reaches it"], rows)


def enough_table(lines: Lines, task: str) -> str:
    """Each peer, and the smallest SNNK and the smallest other peer that reach it."""
    shown, found = TASKS[task], results(lines, task)
    rows = []
    for peer in sorted((x for x in found if SNNK not in x.label), key=lambda x: x.parameters):
        cells = []
        for wanted in (True, False):
            reaching = [
                x
                for x in found
                if (SNNK in x.label) is wanted and x is not peer and _reaches(x, peer, shown.sign)
            ]
            if not reaching:
                cells += ["none", ""]
                continue
            best = min(reaching, key=lambda x: (x.parameters, -shown.sign * x.mean))
            factor = f"{peer.parameters / best.parameters:.1f}x" if best.parameters else ""
            cells += [best.label, factor]
        if peer.parameters:
            rows.append([peer.label, f"{peer.parameters:,}", *cells])
    header = ["peer", "", "smallest SNNK that reaches it", "fewer"]
    return markdown([*header, "smallest peer that reaches it", "fewer"], rows)


def explored_table(lines: Lines) -> str:
    """The best validation result of every setting that was tried."""
    tasks = [task for task in TASKS if any(_explored(line, task) for line in lines)]
    labels = list(dict.fromkeys(x["method"] for x in lines if x["stage"] == "explore"))
    rows = []
    for label in labels:
        row = [label]
        for task in tasks:
            shown = TASKS[task]
            tries = [x for x in lines if _explored(x, task) and x["method"] == label]
            if not tries:
                row.append("")
                continue
            best = max(tries, key=lambda x: shown.sign * float(x["valid"]))
            value = shown.factor * float(best["valid"])
            row.append(f"{value:.{shown.digits}f} at {best['rate']}")
        rows.append(row)
    return markdown(["setting", *(f"{TASKS[t].title}, {TASKS[t].measure}" for t in tasks)], rows)


def write(lines: Lines, folder: Path) -> str:
    """Write the page and the picture.

    Returns:
        The page.
    """
    tasks = [task for task in TASKS if results(lines, task)]
    if not tasks:
        raise SystemExit("There is nothing to report: run the program without --report first.")
    parts = [HEAD_OF_PAGE, _places(lines), f"![]({PICTURE})", FRONT]
    for task in tasks:
        parts += [f"## {TASKS[task].title}", READINGS[task], main_table(lines, task)]
        parts += [EQUAL_SIZE, equal_table(lines, task)]
        parts += [FIFTH, fifth_table(lines, task), ENOUGH, enough_table(lines, task)]
    parts += ["## What was tried of SNNK", EXPLORED, explored_table(lines), CHOSEN]
    parts += ["## Time and memory", COSTS]
    page = "\n\n".join(parts) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(page, encoding="utf-8")
    save_picture(lines, tasks, folder / PICTURE)
    return page


def save_picture(lines: Lines, tasks: list[str], path: Path) -> None:
    """Each family's test measure over the adapter's parameters; bars span the seeds."""
    figure = Figure(figsize=(4.2 * len(tasks), 4.8), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    # a family looks the same in every panel; the head is the first
    known, markers, colours = ["head alone"], "xos^vDP*<>p", colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axes, task in zip(panels, tasks, strict=True):
        shown, families = TASKS[task], _families(results(lines, task))
        for name, members in families.items():
            values = [[shown.factor * v for v in x.by_seed.values()] for x in members]
            means = [mean(v) for v in values]
            ends = [
                [m - min(v) for m, v in zip(means, values, strict=True)],
                [max(v) - m for m, v in zip(means, values, strict=True)],
            ]
            sizes = [x.parameters for x in members]
            known += [] if name in known else [name]
            place = known.index(name)
            # those that are far apart in the list first
            colour = colours[2 * place % 20 + (2 * place >= 20)]
            if not any(sizes):
                axes.axhline(means[0], color=colour, linestyle=":", linewidth=1.5)
                continue
            axes.errorbar(
                sizes,
                means,
                yerr=ends,
                color=colour,
                marker=markers[place % len(markers)],
                linestyle="-" if SNNK in name else "--",
                linewidth=1.2,
                markersize=5,
                capsize=2,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_xlabel("trained numbers of the adapter")
        axes.set_ylabel(shown.measure)
        axes.set_title(shown.title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    # without the version of matplotlib, the same lines give the same file
    figure.savefig(path, dpi=72, metadata={"Software": None})


def _families(found: list[Result]) -> dict[str, list[Result]]:
    """By the part of the label before the size, each in order of size."""
    families: dict[str, list[Result]] = {}
    for one in sorted(found, key=lambda x: x.parameters):
        families.setdefault(one.label.partition(",")[0], []).append(one)
    return families


def _explored(line: dict[str, str], task: str) -> bool:
    return line["stage"] == "explore" and line["task"] == task and line["valid"] != "nan"


def _signed(difference: float, spread: float, shown: Shown) -> str:
    one, other = shown.factor * difference, shown.factor * spread
    return f"{one:+.{shown.digits}f} ± {other:.{shown.digits}f}"


def _reaches(one: Result, other: Result, sign: int) -> bool:
    """No worse by more than a standard error."""
    difference, error = gap(one, other, sign)
    return difference >= -error


def _verdict(difference: float, half: float) -> str:
    if abs(difference) > half:
        return "better" if difference > 0 else "worse"
    return "not told apart"


def _places(lines: Lines) -> str:
    last = lines[-1]
    keys = ("date", "device", "hf_softext", "transformers", "torch", "peft")
    return "Measured: " + ", ".join(f"{key} {last[key]}" for key in keys) + "."
