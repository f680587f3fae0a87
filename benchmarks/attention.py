"""Time and memory of attention, forward and with backward, against sdpa and the whole matrix.

    python benchmarks/attention.py              # measures and prints; some ten minutes on CPU
    python benchmarks/attention.py --report     # prints the last run's table

Every implementation gets the same tensors in the same process, in turns, and keeps its best time;
a time is given as a ratio to `torch.nn.functional.scaled_dot_product_attention`, memory as MiB
beyond the inputs and as a ratio to the same method with its whole matrix of weights. "eager" is
what transformers computes without sdpa; "flex" is the compiled FlexAttention with the method's
map, which on CPU has no backward pass and no second pass for the re-weighted method. Causal, no
mask tensor. Appends to results/attention.csv.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from _record import RESULTS, append, environment, markdown, peak_extra_mib, read
from torch import Tensor
from transformers.models.llama.modeling_llama import eager_attention_forward

from hf_softext.catalog import find
from hf_softext.functional import fused_attention

CSV = RESULTS / "attention.csv"
METHODS = ("softplus", "softplus_reweighted", "stablemax")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def implementations(length: int, dtype: torch.dtype, backward: bool, device: str) -> dict:
    """Every peer that can do it, by name."""
    module = SimpleNamespace(
        training=False, num_key_value_groups=1, config=SimpleNamespace(is_decoder=True)
    )
    scaling = 64**-0.5

    def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
        return eager_attention_forward(
            module, query, key, value, mask.triu(1)[None, None], scaling
        )[0]

    def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    found: dict[str, Attention] = {"sdpa": sdpa, "eager": eager}
    for name in METHODS:
        method = find(name, "attention").load()

        def ours(*tensors: Tensor, method: Any = method, whole: bool = False) -> Tensor:
            return method.forward(module, *tensors, None, scaling, output_attentions=whole)[0]

        found[name] = ours
        found[f"{name}, naive"] = lambda *tensors, ours=ours: ours(*tensors, whole=True)
        if device == "cpu" and not backward and method.row_map != "softplus_sharpened":
            found[f"{name}, flex"] = flex(method, module, scaling)
    return found


def flex(method: Any, module: Any, scaling: float) -> Attention:
    """The method on the compiled FlexAttention, on CPU."""
    from hf_softext.attention._base import Call
    from hf_softext.attention._mask import visibility

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        options = method.resolve({})
        visible = visibility(None, query, key, causal=True)
        call = Call(
            query, key, value, visible, scaling, None, None, 0.0, False, torch.float32, module
        )
        scaled = method._scaled(call, options.pop("scale"))
        narrow = (x.to(query.dtype) for x in (*scaled, value))
        return fused_attention(
            *narrow, row_map=method.row_map, options=options, keep=visible.dense()
        )

    return run


def measure(
    attention: Attention, inputs: list[Tensor], upstream: Tensor | None, repeats: int
) -> float:
    """Best time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        once(attention, inputs, upstream)
        times.append(time.perf_counter() - start)
    return min(times)


def once(attention: Attention, inputs: list[Tensor], upstream: Tensor | None) -> None:
    """One forward pass, with its backward pass where there is an upstream gradient."""
    if upstream is None:
        with torch.no_grad():
            attention(*inputs)
    else:
        output = attention(*inputs)
        torch.autograd.grad(output, inputs, upstream.expand_as(output))
    if inputs[0].is_cuda:
        torch.cuda.synchronize()


def cell(length: int, dtype: torch.dtype, backward: bool, given: argparse.Namespace) -> list[dict]:
    """Measure every implementation on the same tensors."""
    device = given.device
    # each length is compiled for itself: with several, FlexAttention's own C++ does not compile
    torch._dynamo.reset()
    inputs = [
        torch.randn(given.batch, given.heads, length, 64, device=device, dtype=dtype)
        for _ in range(3)
    ]
    upstream = None
    if backward:
        inputs = [tensor.requires_grad_() for tensor in inputs]
        upstream = torch.randn((), device=device, dtype=dtype)
    found = implementations(length, dtype, backward, device)
    matrix = given.batch * given.heads * length**2 * 4 / 2**30
    left_out = [n for n in found if n.endswith("naive") and 12 * matrix > given.naive_gib]
    times: dict[str, float] = {}
    for _ in range(given.rounds):
        for name, attention in found.items():
            if name in left_out:
                continue
            if name not in times:
                once(attention, inputs, upstream)
            spent = measure(attention, inputs, upstream, 1)
            times[name] = min(spent, times.get(name, spent))
    memory = {
        name: peak_extra_mib(lambda a=found[name]: once(a, inputs, upstream), device)
        for name in times
    }
    rows = []
    for name, seconds in times.items():
        method = name.split(",")[0]
        naive = memory.get(f"{method}, naive")
        naive_time = times.get(f"{method}, naive")
        rows.append(
            {
                "implementation": name,
                "dtype": str(dtype).removeprefix("torch."),
                "length": length,
                "pass": "forward+backward" if backward else "forward",
                "seconds": f"{seconds:.5f}",
                "time_to_sdpa": f"{seconds / times['sdpa']:.2f}",
                "time_to_naive": f"{seconds / naive_time:.3f}" if naive_time else "",
                "extra_mib": f"{memory[name]:.1f}",
                "memory_to_naive": f"{memory[name] / naive:.4f}" if naive else "",
                "batch": given.batch,
                "heads": given.heads,
                "head_dim": 64,
                **environment(device),
            }
        )
        print({key: rows[-1][key] for key in list(rows[-1])[:9]}, flush=True)
    return rows


def report() -> str:
    """The last run, a row for each implementation."""
    rows = read(CSV)
    last = [row for row in rows if row["date"] == rows[-1]["date"]]
    lines = []
    for key in dict.fromkeys((r["dtype"], r["pass"], r["implementation"]) for r in last):
        mine = {
            row["length"]: row
            for row in last
            if (row["dtype"], row["pass"], row["implementation"]) == key
        }
        lengths = sorted({row["length"] for row in last}, key=int)
        lines.append(
            [
                *key,
                *(
                    f"{mine[n]['time_to_sdpa']}x, {float(mine[n]['extra_mib']):.0f}"
                    if n in mine
                    else ""
                    for n in lengths
                ),
            ]
        )
    header = ["dtype", "pass", "implementation", *lengths]
    return markdown(header, lines)


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="print the last run's table")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--naive-gib", type=float, default=14, help="leave the whole matrix out above so much"
    )
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not given.report:
        for dtype in given.dtypes:
            for length in given.lengths:
                for backward in (False, True):
                    append(CSV, cell(length, getattr(torch, dtype), backward, given))
    print(report())


if __name__ == "__main__":
    main()
