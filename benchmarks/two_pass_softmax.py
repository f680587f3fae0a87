"""Two-pass softmax and log-sum-exp against torch's, on the CPU.

    python benchmarks/two_pass_softmax.py            measure (two to three minutes) and print
    python benchmarks/two_pass_softmax.py --report   print the last measurement

Appends a line for each size and number of threads to `benchmarks/results/two_pass_softmax.csv`.
The peers take turns, in an order that changes, and the best time of each counts, as the machine may
be busy with other work. Two threads need two idle cores, or they only measure the waiting.
Three comparisons: softmax as it is called, into new memory, which the system must clear first; into
memory that is there already, which shows the kernel; and log-sum-exp. A copy, into new memory and
into old, is the floor. "huge" is our kernel on rows beyond its range, which take a third pass.
"""

import argparse
import platform
import random
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch
from _record import RESULTS, append, read

import hf_softext
from hf_softext.ops import two_pass_logsumexp, two_pass_softmax
from hf_softext.ops.two_pass_softmax import run

CSV = RESULTS / "two_pass_softmax.csv"
SIZES = (
    (2, 1 << 14),
    (2, 1 << 16),
    (2, 1 << 18),
    (2, 1 << 20),
    (2, 1 << 22),
    (1, 1 << 24),
    (2048, 50304),
)
SECONDS = 5.0


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def best_of_turns(peers: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds: each peer in turn, for `SECONDS` in all and three times at least."""
    best = dict.fromkeys(peers, float("inf"))
    order, chance = list(peers), random.Random(0)
    end, turns = time.perf_counter() + SECONDS, 0
    while turns < 3 or time.perf_counter() < end:
        # who comes after a call that frees memory finds some that the system need not clear
        chance.shuffle(order)
        for name in order:
            start = time.perf_counter()
            peers[name]()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
        turns += 1
    return best


def measure(rows: int, columns: int, threads: int) -> dict[str, object]:
    """One line of the results."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x = torch.randn(rows, columns) * 3
    y = torch.empty_like(x)
    milliseconds = best_of_turns(
        {
            "torch": lambda: torch.softmax(x, -1),
            "two_pass": lambda: two_pass_softmax(x),
            "clone": lambda: x.clone(),
            "torch_out": lambda: torch.softmax(x, -1, out=y),
            "two_pass_out": lambda: run(x, y, None),
            "copy_out": lambda: y.copy_(x),
            "torch_logsumexp": lambda: torch.logsumexp(x, -1),
            "two_pass_logsumexp": lambda: two_pass_logsumexp(x),
        }
    )
    x += 1e4
    milliseconds |= best_of_turns({"two_pass_out_huge": lambda: run(x, y, None)})
    return {"rows": rows, "columns": columns, "threads": threads} | {
        f"{name}_ms": f"{value:.4g}" for name, value in milliseconds.items()
    }


def report(lines: list[dict[str, str]]) -> None:
    """Print the last measurement as a table of ratios: above 1 we are the faster one."""
    lines = [line for line in lines if line["measured"] == lines[-1]["measured"]]

    def ratio(line: dict[str, str], peer: str, ours: str) -> str:
        return f"{float(line[f'{peer}_ms']) / float(line[f'{ours}_ms']):.2f}"

    columns = {
        "softmax": ("torch", "two_pass"),
        "its floor": ("torch", "clone"),
        "kernel": ("torch_out", "two_pass_out"),
        "its floor ": ("torch_out", "copy_out"),
        "kernel, huge": ("torch_out", "two_pass_out_huge"),
        "logsumexp": ("torch_logsumexp", "two_pass_logsumexp"),
    }
    print(
        "{measured}, {device}, torch {torch}, time of torch / time of ours:\n".format(**lines[-1])
    )
    table = [
        ["threads", "rows x columns", "torch.softmax, ms", *columns],
        ["---"] * (3 + len(columns)),
    ]
    for line in lines:
        size = f"{line['rows']} x {int(line['columns']):,}"
        ratios = [ratio(line, *pair) for pair in columns.values()]
        table.append([line["threads"], size, line["torch_ms"], *ratios])
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))


def main() -> None:
    """Measure, unless only the report is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="only print the last measurement")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    if not given.report:
        two_pass_softmax(torch.zeros(1, 1))
        place = {
            "measured": datetime.now().isoformat(timespec="minutes"),
            "device": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
            "hf_softext": hf_softext.__version__,
            "torch": torch.__version__,
        }
        for threads in given.threads:
            for rows, columns in SIZES:
                append(CSV, [measure(rows, columns, threads) | place])
    report(read(CSV))


if __name__ == "__main__":
    main()
