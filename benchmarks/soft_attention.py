"""Time and memory of SOFT and SOFT++, exact and through landmarks, against sdpa.

    python benchmarks/soft_attention.py              # measures and prints; some minutes on CPU
    python benchmarks/soft_attention.py --report     # prints the last run's tables

Every row gets the same float32 tensors in the same process, in turns, and keeps its best time; a
time is given as a ratio to `torch.nn.functional.scaled_dot_product_attention`. Bidirectional, no
mask, one tensor as query and key for the low-rank rows. Memory is the peak of the process's
resident memory beyond what it held before the call. "growth" is the exponent x in time ~ N^x,
fitted over the lengths from 2,048: 1 is linear, 2 quadratic. Appends to
results/soft_attention.csv.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from _record import RESULTS, append, environment, markdown, peak_extra_mib, read
from torch import Tensor

from hf_softext.attention.soft import SOFT, SOFT_NORM

CSV = RESULTS / "soft_attention.csv"
DIM = 64
FIT_FROM = 2048
SLOW = 0.5
DIRECTIONS = ("forward", "forward + backward")


def implementations() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The rows of the tables."""
    low_rank = {"mode": "low_rank", "tie": "query"}

    def ours(method, **parameters):
        block = {"attention": method.name, **parameters}
        module = SimpleNamespace(
            training=False, config=SimpleNamespace(is_decoder=False, softext=block)
        )
        return lambda query, key, value: method.forward(module, query, key, value, None)[0]

    return {
        "sdpa": F.scaled_dot_product_attention,
        "soft, exact": ours(SOFT),
        "soft_norm, exact": ours(SOFT_NORM),
        "soft, 49 landmarks": ours(SOFT, **low_rank, landmarks=49),
        "soft, 64 landmarks": ours(SOFT, **low_rank, landmarks=64),
        "soft_norm, 49 landmarks": ours(SOFT_NORM, **low_rank, landmarks=49),
        "soft_norm, 64 landmarks": ours(SOFT_NORM, **low_rank, landmarks=64),
    }


def once(attention: Callable, inputs: list[Tensor], backward: bool) -> None:
    """One forward pass, with its backward pass if wanted."""
    if not backward:
        with torch.no_grad():
            attention(*inputs)
        return
    output = attention(*inputs)
    torch.autograd.grad(output, inputs, torch.ones_like(output), allow_unused=True)


def measure(given: argparse.Namespace) -> list[dict]:
    """Every length, direction and row."""
    rows = []
    for attention in implementations().values():
        # what a process loads once is nobody's
        once(attention, [torch.randn(1, 1, 80, DIM, requires_grad=True) for _ in range(3)], True)
    for length in given.lengths:
        shape = (given.batch, given.heads, length, DIM)
        plain = [torch.randn(shape) for _ in range(3)]
        for direction in DIRECTIONS:
            backward = direction != "forward"
            inputs = [tensor.clone().requires_grad_(backward) for tensor in plain]
            found = implementations()
            # a first time, not measured for its length
            memory = {
                name: peak_extra_mib(partial(once, attention, inputs, backward))
                for name, attention in found.items()
            }
            times = dict.fromkeys(found, math.inf)
            for _ in range(given.rounds):
                for name, attention in found.items():
                    # of a long run once tells enough
                    if SLOW < times[name] < math.inf:
                        continue
                    start = time.perf_counter()
                    once(attention, inputs, backward)
                    times[name] = min(times[name], time.perf_counter() - start)
            rows += [
                {
                    "attention": name,
                    "direction": direction,
                    "batch": given.batch,
                    "heads": given.heads,
                    "head_dim": DIM,
                    "tokens": length,
                    "seconds": round(seconds, 6),
                    "ratio_to_sdpa": round(seconds / times["sdpa"], 4),
                    "peak_mib": round(memory[name], 1),
                    **environment(),
                }
                for name, seconds in times.items()
            ]
            print(f"{length} {direction}: done", flush=True)
    return rows


def growth(points: list[tuple[int, float]]) -> float:
    """The slope of log time over log tokens, by least squares."""
    x, y = torch.tensor(points, dtype=torch.float64).log().T
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def report(rows: list[dict[str, str]]) -> str:
    """The last run of each cell, as tables."""
    last = {(r["direction"], r["attention"], int(r["tokens"])): r for r in rows}
    lengths = sorted({length for _, _, length in last})
    names = list(dict.fromkeys(name for _, name, _ in last))
    parts = []
    for direction in DIRECTIONS:
        table = []
        for name in names:
            cells = [last[direction, name, length] for length in lengths]
            fitted = [(n, float(c["seconds"])) for n, c in zip(lengths, cells, strict=True)]
            fitted = [point for point in fitted if point[0] >= FIT_FROM]
            slope = f"{growth(fitted):.2f}" if len(fitted) > 1 else ""
            texts = [f"{float(c['ratio_to_sdpa']):.3g}x, {float(c['peak_mib']):.0f}" for c in cells]
            table.append([name, *texts, slope])
        header = [f"{direction}: time to sdpa, peak MiB", *(f"{n:,}" for n in lengths), "growth"]
        parts.append(markdown(header, table))
        parts.append(
            "sdpa: "
            + ", ".join(
                f"{n:,}: {float(last[direction, 'sdpa', n]['seconds']):.4f} s" for n in lengths
            )
        )
    return "\n\n".join(parts)


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="print what was measured before")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**n for n in range(8, 15)])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of runs below half a second")
    given = parser.parse_args()
    if not given.report:
        torch.manual_seed(0)
        torch.set_num_threads(given.threads)
        append(CSV, measure(given))
    print(report(read(CSV)))


if __name__ == "__main__":
    main()
