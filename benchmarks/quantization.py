"""Time and memory of layers quantized with BAQ, against bfloat16 and torch's int4.

    python benchmarks/quantization.py               # measures and prints; some minutes on CPU
    python benchmarks/quantization.py --report      # prints the last run's tables

A layer: 4096 x 4096, at 2, 3 and 4 true bits, with columns of the widths that the allocation gives
where their losses are log-normal; one row, as in decoding, and many, as for a prompt. Peers in the
same process, in turns, best time of each: `F.linear` in bfloat16, and torch's int4 product with a
scale for every 32 weights (5 bits). "decoded" is BAQ without torch's kernel, as on every device but
CPU.

A model: a Llama of 8 layers of 1,024, random weights in bfloat16, quantized without data; 64 tokens
one by one after a prompt of 16, batch 1, best of some runs, and the resident memory of the process,
beyond what it had before loading, after loading and after generating. A process for each, in turns.

Appends to results/quantization.csv.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _record import RESULTS, append, environment, markdown, read
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_softext.quantization.baq.allocation import allocate
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.packing import overhead_bits, plane_bits
from hf_softext.quantization.baq.register import register_baq
from hf_softext.quantization.baq.weight import QuantizedWeight, Sensitivity, Settings

CSV = RESULTS / "quantization.csv"
BITS = (2, 3, 4)
ROWS = (1, 16, 64, 256)
PLAIN, INT4 = "bfloat16", "torch int4, group 32"
PROMPT, TOKENS = 16, 64


def levels_of(size: int, bits: float) -> Tensor:
    """Levels of the columns of a square layer whose losses are log-normal."""
    spread = torch.randn(size, dtype=torch.float64).exp()
    losses = spread[:, None] * 0.25 ** torch.arange(9, dtype=torch.float64)
    return allocate({"layer": Sensitivity(size, losses)}, Settings(bits=bits))["layer"]


def baq_layer(size: int, bits: float) -> BaqLinear:
    """A layer with random codes."""
    levels = levels_of(size, bits)
    codes = (torch.rand(size, size) * levels).to(torch.uint8)
    ranges = torch.ones(size, 1).half()
    weight = QuantizedWeight(codes, levels, ranges, torch.ones(9).half(), zero_point=False)
    return BaqLinear.from_weight(weight, None, torch.bfloat16)


def int4_layer(size: int, group: int = 32) -> Callable[[Tensor], Tensor]:
    """torch's own product with 4 bits, and scale and zero in bfloat16 for every group."""
    codes = torch.randint(0, 16, (size, size), dtype=torch.int32)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(size // group, size, 2).bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, group, scales)


def layers(size: int) -> dict[str, tuple[float, Callable[[Tensor], Tensor]]]:
    """Every implementation with its true bits of a weight."""
    dense = torch.randn(size, size).bfloat16()
    found: dict[str, Any] = {
        PLAIN: (16.0, lambda x: F.linear(x, dense)),
        INT4: (5.0, int4_layer(size)),
    }
    for bits in BITS:
        layer = baq_layer(size, bits)
        true = len(layer.planes) * plane_bits(size) + overhead_bits(size, size)
        found[f"BAQ, {bits} bits"] = (true / size**2, layer)
        decoded = baq_layer(size, bits)
        decoded._packs = False
        found[f"BAQ, {bits} bits, decoded"] = (true / size**2, decoded)
    return found


@torch.no_grad()
def measure_layers(given: argparse.Namespace) -> None:
    """Time every implementation on the same rows."""
    found = layers(given.size)
    for rows in given.rows:
        x = torch.randn(rows, given.size).bfloat16()
        times: dict[str, float] = {}
        for _ in range(given.rounds):
            for name, (_, run) in found.items():
                if name not in times:
                    run(x)
                start = time.perf_counter()
                run(x)
                spent = time.perf_counter() - start
                times[name] = min(spent, times.get(name, spent))
        record(
            {
                "what": f"layer {given.size} x {given.size}",
                "implementation": name,
                "bits": f"{found[name][0]:.3f}",
                "rows": rows,
                "seconds": f"{seconds:.6f}",
                "speed_to_bfloat16": f"{times[PLAIN] / seconds:.2f}",
            }
            for name, seconds in times.items()
        )


def record(cells: Any) -> None:
    """Print cells and append them, with all columns."""
    empty = dict.fromkeys(
        ("what", "implementation", "bits", "rows", "seconds", "speed_to_bfloat16"), ""
    )
    empty |= dict.fromkeys(("tokens_per_second", "loaded_mib", "used_mib"), "")
    cells = [empty | cell | environment() for cell in cells]
    for cell in cells:
        print({key: cell[key] for key in empty if cell[key] != ""}, flush=True)
    append(CSV, cells)


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def prepare(folder: Path, given: argparse.Namespace) -> None:
    """Write the model, plain and quantized."""
    register_baq()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given.width,
        intermediate_size=11 * given.width // 4,
        num_hidden_layers=given.layers,
        num_attention_heads=given.width // 64,
        num_key_value_heads=given.width // 64,
        vocab_size=8192,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / PLAIN)
    for bits in BITS:
        settings = BaqConfig(bits=bits, solver="rtn", clip=False, refine=0)
        model = LlamaForCausalLM.from_pretrained(folder / PLAIN, quantization_config=settings)
        model.save_pretrained(folder / f"BAQ, {bits} bits")


@torch.no_grad()
def run_model(folder: Path) -> None:
    """In a process of its own: load, generate, and print what that took."""
    register_baq()
    # so that what loading brings in for every model is not counted
    tiny = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8
    )
    LlamaForCausalLM(tiny)(torch.zeros(1, 1, dtype=torch.int64))
    before = resident_mib()
    model = LlamaForCausalLM.from_pretrained(folder)
    loaded = resident_mib() - before
    ids = torch.arange(3, 3 + PROMPT)[None]
    best = float("inf")
    for _ in range(4):
        cache = model(ids, use_cache=True).past_key_values
        token = ids[:, -1:]
        start = time.perf_counter()
        for _ in range(TOKENS):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        best = min(best, time.perf_counter() - start)
    print(json.dumps([TOKENS / best, loaded, resident_mib() - before]))


def measure_models(given: argparse.Namespace) -> None:
    """Run every model in a process of its own, in turns; the best speed and the last memory."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, given)
        names = [PLAIN, *(f"BAQ, {bits} bits" for bits in BITS)]
        found: dict[str, list[float]] = {}
        for _ in range(2):
            for name in names:
                command = [sys.executable, __file__, "--run", str(folder / name)]
                command += ["--threads", str(torch.get_num_threads())]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                result = json.loads(done.stdout.splitlines()[-1])
                found[name] = [max(result[0], found.get(name, result)[0]), *result[1:]]
        record(
            {
                "what": f"Llama, {given.layers} x {given.width}",
                "implementation": name,
                "bits": name.split()[1] if name != PLAIN else "16",
                "rows": 1,
                "speed_to_bfloat16": f"{speed / found[PLAIN][0]:.2f}",
                "tokens_per_second": f"{speed:.2f}",
                "loaded_mib": f"{loaded:.0f}",
                "used_mib": f"{used:.0f}",
            }
            for name, (speed, loaded, used) in found.items()
        )


def report() -> str:
    """The last figure of every cell."""
    latest = {(r["what"], r["implementation"], r["rows"]): r for r in read(CSV)}
    tables = []
    for what in dict.fromkeys(key[0] for key in latest):
        mine = {key[1:]: row for key, row in latest.items() if key[0] == what}
        names = dict.fromkeys(name for name, _ in mine)
        counts = sorted({rows for _, rows in mine}, key=int)
        if what.startswith("layer"):
            header = ["speed to bfloat16", "true bits", *(f"{n} rows" for n in counts)]
            lines = [
                [
                    name,
                    mine[name, counts[0]]["bits"],
                    *(
                        f"{row['speed_to_bfloat16']} ({1000 * float(row['seconds']):.2f} ms)"
                        for row in (mine[name, n] for n in counts)
                    ),
                ]
                for name in names
            ]
        else:
            header = ["", "tokens a second", "to bfloat16", "MiB loaded", "MiB in use"]
            keys = ("tokens_per_second", "speed_to_bfloat16", "loaded_mib", "used_mib")
            lines = [[name, *(mine[name, "1"][key] for key in keys)] for name in names]
        device = next(iter(mine.values()))["device"]
        tables.append(f"{what}, {device}\n\n{markdown(header, lines)}")
    return "\n\n".join(tables)


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="print the last run's tables")
    parser.add_argument("--threads", type=int, help="of torch; by default as it is")
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs of the layer")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=8, help="of the model")
    parser.add_argument("--width", type=int, default=1024, help="of the model")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.run:
        run_model(given.run)
        return
    if not given.report:
        torch.manual_seed(0)
        measure_layers(given)
        measure_models(given)
    print(report())


if __name__ == "__main__":
    main()
