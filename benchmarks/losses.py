"""Time and memory of a loss on a large vocabulary, with and without its logits.

    python benchmarks/losses.py              # measures and prints; some ten minutes on CPU
    python benchmarks/losses.py --report     # prints the last run's table
    python benchmarks/losses.py --device cuda --dtype bfloat16 --tokens 16384 --vocabulary 131072

The forward and backward pass of a linear layer and its loss, for the gradients of the hidden states
and of the weight. "naive" is autograd on the logits of all tokens; "in place" and "by chunks" are
`linear_loss` with the loss's derivative in closed form and with autograd on each chunk, which any
loss can have; "Gram" is the head of `spherical_z`; for cross-entropy the peers are torch's
`linear_cross_entropy` and, on CUDA where they are installed, Liger's and Apple's kernels.

Each loss's implementations take turns in one process. A time is the median over the rounds of the
ratio to the naive call of the same round, so that other work on the machine, whose load is written
down, matters little. Memory is the peak beyond the inputs, the gradients included. Loss values that
differ from the naive one are an error. Appends to results/losses.csv.
"""

import argparse
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from _record import RESULTS, append, environment, markdown, peak_extra_mib, read
from torch import Tensor

from hf_softext.functional import linear_loss
from hf_softext.losses import SoftextLoss, get_loss

CSV = RESULTS / "losses.csv"
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "comp_sum": {"tau": 1.5},
    "stablemax_ce": {},
    "ldr_kl": {},
    "spherical_z": {},
}
NAIVE, IN_PLACE, CHUNKS, GRAM, TORCH = "naive", "in place", "by chunks", "Gram", "torch"
LIGER, APPLE = "Liger", "cut-cross-entropy"
# several times slower than the others on CPU, and far more on a busy one
ONCE = {TORCH}
Run = Callable[[], Tensor]


def implementations(
    loss: SoftextLoss, hidden: Tensor, weight: Tensor, labels: Tensor
) -> dict[str, Run]:
    """What computes the mean loss, by name; the first is the one to compare with."""
    count = torch.full((len(labels),), 1 / len(labels), device=labels.device)

    def naive() -> Tensor:
        return loss.per_sample(F.linear(hidden, weight).float(), labels).mean()

    def chunked(gradient_: Any = None) -> Tensor:
        return linear_loss(loss.per_sample, hidden, weight, labels, count, gradient_=gradient_)

    found: dict[str, Run] = {
        NAIVE: naive,
        IN_PLACE: lambda: chunked(loss.gradient_),
        CHUNKS: chunked,
    }
    if loss.name == "spherical_z":
        found[GRAM] = lambda: loss.linear(hidden, weight, labels, count)
    if loss.name == "ce":
        found |= peers(hidden, weight, labels)
    return found


def peers(hidden: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Run]:
    """Cross-entropy without logits as others have it, where it is there."""
    found: dict[str, Run] = {}
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found[TORCH] = lambda: F.linear_cross_entropy(hidden, weight, labels, options=options)
    if hidden.is_cuda and importlib.util.find_spec("liger_kernel"):
        liger = importlib.import_module("liger_kernel.transformers")
        fused = liger.LigerFusedLinearCrossEntropyLoss()
        found[LIGER] = lambda: fused(weight, hidden, labels)
    if hidden.is_cuda and importlib.util.find_spec("cut_cross_entropy"):
        apple = importlib.import_module("cut_cross_entropy")
        found[APPLE] = lambda: apple.linear_cross_entropy(hidden, weight, labels)
    return found


def measure(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one loss.

    Raises:
        RuntimeError: two implementations disagree.
    """
    torch.manual_seed(0)
    dtype, device = getattr(torch, given.dtype), given.device
    sizes = {"tokens": given.tokens, "width": given.width, "vocabulary": given.vocabulary}
    hidden = torch.randn(given.tokens, given.width, device=device).to(dtype)
    weight = torch.randn(given.vocabulary, given.width, device=device).mul(0.02).to(dtype)
    labels = torch.randint(given.vocabulary, (given.tokens,), device=device)
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    found = implementations(get_loss(name, **LOSSES[name]), *inputs, labels)

    def once(run: Run) -> float:
        value = run()
        torch.autograd.grad(value, inputs)
        return value.item()

    # a first time, not measured for its length
    memory, values, load = {}, {}, os.getloadavg()[0]
    for kind, run in found.items():
        memory[kind] = peak_extra_mib(lambda r=run, k=kind: values.update({k: once(r)}), device)
        if abs(values[kind] / values[NAIVE] - 1) > (1e-4 if dtype == torch.float32 else 1e-2):
            raise RuntimeError(f"{name}: {kind} has {values[kind]}, naive {values[NAIVE]}.")
    times: dict[str, list[float]] = {kind: [] for kind in found}
    for turn in range(given.rounds):
        for kind, run in found.items():
            if kind in ONCE and turn > 0 and device == "cpu":
                continue
            start = time.perf_counter()
            once(run)
            times[kind].append(time.perf_counter() - start)
    rows = [
        {
            "loss": name,
            "implementation": kind,
            "dtype": given.dtype,
            **sizes,
            "seconds": f"{median(spent):.4f}",
            "time_to_naive": f"{ratio(spent, times[NAIVE]):.3f}",
            "extra_mib": f"{memory[kind]:.1f}",
            "memory_to_naive": f"{memory[kind] / memory[NAIVE]:.4f}",
            "rounds": len(spent),
            "load": f"{load:.1f}",
            **environment(device),
        }
        for kind, spent in times.items()
    ]
    for row in rows:
        print({key: row[key] for key in list(row)[:11]}, flush=True)
    return rows


def ratio(times: list[float], baseline: list[float]) -> float:
    """The median of the ratios round by round."""
    return median(mine / theirs for mine, theirs in zip(times, baseline, strict=False))


def report(rows: list[dict[str, str]]) -> str:
    """The last run as a table: time and memory, both to naive."""
    setting = ("dtype", "tokens", "width", "vocabulary", "device", "date")
    last = [row for row in rows if all(row[key] == rows[-1][key] for key in setting)]
    cells = {(row["loss"], row["implementation"]): row for row in last}
    others = list(dict.fromkeys(kind for _, kind in cells if kind != NAIVE))

    def cell(row: dict[str, str] | None) -> str:
        if row is None:
            return ""
        return f"{float(row['time_to_naive']):.2f}, 1/{1 / float(row['memory_to_naive']):.1f}"

    table = [
        [
            f"`{loss}`",
            f"{float(cells[loss, NAIVE]['seconds']):.2f} s, {cells[loss, NAIVE]['extra_mib']} MiB",
            *(cell(cells.get((loss, kind))) for kind in others),
        ]
        for loss in dict.fromkeys(loss for loss, _ in cells)
    ]
    loads = [float(row["load"]) for row in last]
    return "\n\n".join(
        [
            ", ".join(f"{key} {last[-1][key]}" for key in (*setting, "torch"))
            + f", load {min(loads)} to {max(loads)}; time and memory to naive:",
            markdown(["loss", NAIVE, *others], table),
        ]
    )


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="print the last run's table")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if not given.report:
        for name in given.losses:
            append(CSV, measure(name, given))
    print(report(read(CSV)))


if __name__ == "__main__":
    main()
