"""What quantization costs: perplexity, cosine and accuracy at true bits, against other methods.

    python benchmarks/quantization_quality.py                          # what is missing in the CSV
    python benchmarks/quantization_quality.py --only "llama.*GPTQ"     # the cells that match
    python benchmarks/quantization_quality.py --report                 # the tables, from the CSV

A cell is a model, a method and a number of bits, and is appended to the CSV as soon as it is
measured. For every row of a peer ours is measured at the bits that the peer takes. HQQ and
AutoRound come from `--peer-python`, a Python that has them (`pip install torch transformers hqq
auto-round`); without, their cells are left out and it is said so.
"""

import argparse
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, append, environment, markdown, read
from datasets import disable_progress_bars
from quantization_methods import PeerFailed, Quantized, ours, peer, peer_versions, reference
from quantization_subjects import SUBJECTS, Subject

CSV = RESULTS / "quantization_quality.csv"
OURS, PLAIN = "BAQ", "float32"
WIDTHS = (2, 3, 4)
AVERAGES = (2, 2.5, 3, 4)

SOUGHT = {"act_order": True, "clip": True}
# label -> arguments of the independent implementation
REFERENCES: dict[str, dict[str, Any]] = {
    "RTN": {"solver": "rtn"},
    "GPTQ": {},
    "GPTQ, act-order": {"act_order": True},
    "GPTQ, act-order, clip": SOUGHT,
    "GPTQ, act-order, group 64": {"act_order": True, "group": 64},
    "GPTQ, act-order, clip, group 64": SOUGHT | {"group": 64},
}
# ours without one of its parts, to tell what each is worth -> arguments, and at which bits
VARIANTS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "BAQ, the authors' allocation": ({"allocation": "paper"}, WIDTHS),
    "BAQ, one width": ({"allocation": "uniform"}, WIDTHS),
    "BAQ, layers together": ({"allocation": "model"}, (2, 3)),
    "BAQ, layers apart": ({"allocation": "layer"}, (2, 3)),
    "BAQ, ranges not searched": ({"clip": False}, (2, 3)),
}
# label -> the package and its arguments
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "HQQ": ("hqq", {}),
    "HQQ, group 64": ("hqq", {"group": 64}),
    "AutoRound": ("autoround", {}),
    "AutoRound, group 64": ("autoround", {"group": 64}),
    "AutoRound, symmetric, group 64": ("autoround", {"group": 64, "symmetric": True}),
}
MEASURES = ("perplexity", "divergence", "cosine", "accuracy")


@dataclass(frozen=True)
class Cell:
    """One figure to measure.

    Attributes:
        model: key of `SUBJECTS`.
        method: label.
        bits: nominal for the peers, true for ours; 32 for the model as it is.
        options: of the method.
    """

    model: str
    method: str
    bits: float
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.model}: {self.method} at {self.bits:g}"


def peer_cells(model: str) -> Iterator[Cell]:
    """The model as it is, and all other methods at whole bits."""
    yield Cell(model, PLAIN, 32)
    for bits in WIDTHS:
        for label, options in REFERENCES.items():
            yield Cell(model, label, bits, options)
    # the nearest to 2.5 bits that a whole width gets
    yield Cell(model, "GPTQ, act-order, group 32", 2, {"act_order": True, "group": 32})
    yield Cell(model, "GPTQ, act-order, clip, group 32", 2, SOUGHT | {"group": 32})
    for bits in WIDTHS:
        for label, (name, options) in PEERS.items():
            # AutoRound knows causal language models
            if name != "autoround" or model != "minilm":
                yield Cell(model, label, bits, options | {"name": name})


def our_cells(model: str, lines: list[dict[str, str]]) -> Iterator[Cell]:
    """Ours at whole and half averages, at the bits of every peer measured so far, and without one
    or another of its parts."""
    own = (OURS, PLAIN, *VARIANTS)
    others = {one["true_bits"] for one in lines if one["method"] not in own}
    for bits in sorted({*AVERAGES, *map(float, others)}):
        yield Cell(model, OURS, bits)
    for label, (options, averages) in VARIANTS.items():
        for bits in averages:
            yield Cell(model, label, bits, options)


def quantize(cell: Cell, subject: Subject, python: str, work: Path) -> Quantized:
    """Do what a cell says."""
    if cell.method == PLAIN:
        return Quantized(subject.load(), 32, 0.0)
    if cell.method in (OURS, *VARIANTS):
        return ours(subject, cell.bits, work, **cell.options)
    if "name" in cell.options:
        return peer(subject, int(cell.bits), python=python, work=work, **cell.options)
    return reference(subject, int(cell.bits), **cell.options)


def measure(cell: Cell, subject: Subject, python: str) -> None:
    """Measure a cell and append it."""
    start = time.time()
    with tempfile.TemporaryDirectory() as name:
        found = quantize(cell, subject, python, Path(name))
        measured = subject.measure(found.model)
    row = {
        "model": cell.model,
        "weights": subject.fingerprint,
        "method": cell.method,
        "bits": f"{cell.bits:g}",
        "true_bits": round(found.bits, 5),
        **{key: round(measured[key], 5) if key in measured else "" for key in MEASURES},
        "seconds": round(found.seconds, 1),
        "seed": 0,
        "peer_version": found.version,
        **environment(),
    }
    append(CSV, [row])
    shown = ", ".join(f"{key} {row[key]}" for key in MEASURES if row[key] != "")
    print(f"{cell}: {row['true_bits']} bits, {shown}; {time.time() - start:.0f} s", flush=True)


def latest(model: str, weights: str | None = None) -> list[dict[str, str]]:
    """The last line of each cell of a model; of its last training unless told."""
    lines = [line for line in read(CSV) if line["model"] == model]
    weights = weights or (lines[-1]["weights"] if lines else None)
    cells = {(x["method"], x["bits"]): x for x in lines if x["weights"] == weights}
    return list(cells.values())


def report(model: str) -> str:
    """The table of one model: each peer beside ours at the bits that it takes."""
    lines = latest(model)
    measures = [key for key in MEASURES if any(line[key] for line in lines)]
    mine = {line["bits"]: line for line in lines if line["method"] == OURS}
    header = ["bits", "method", "true bits", *measures, "ours: true bits"]
    header += [f"ours: {key}" for key in measures] + ["seconds"]
    rows = []
    for line in sorted(lines, key=lambda x: (float(x["bits"]), x["method"] == OURS)):
        rival = mine.get(f"{float(line['true_bits']):g}") if line["method"] != OURS else None
        if line["method"] == OURS and float(line["bits"]) not in AVERAGES:
            continue
        own, shown = (_figures(one, measures) for one in (line, rival))
        rows.append([line["bits"], line["method"], *own, *shown, line["seconds"]])
    return f"**{model}**\n\n" + markdown(header, rows)


def _figures(line: dict[str, str] | None, measures: list[str]) -> list[str]:
    if line is None:
        return [""] * (1 + len(measures))
    return [f"{float(line['true_bits']):.3f}", *(f"{float(line[key]):.4f}" for key in measures)]


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[*SUBJECTS], choices=[*SUBJECTS])
    parser.add_argument("--only", default="", help="a regular expression that a cell must match")
    parser.add_argument("--again", action="store_true", help="measure also what is in the CSV")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if given.report:
        print("\n\n".join(report(model) for model in given.models if latest(model)))
        return
    warnings.filterwarnings("ignore", category=UserWarning)
    disable_progress_bars()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    peers = peer_versions(given.peer_python)
    for name in {name for name, _ in PEERS.values()} - peers.keys():
        print(f"left out: {given.peer_python} has no {name}.", flush=True)
    for model in given.models:
        subject = SUBJECTS[model]()
        for cells in (peer_cells, lambda key, known=subject: our_cells(key, _of(key, known))):
            for cell in cells(model):
                known = {(x["method"], x["bits"]) for x in _of(model, subject)}
                done = (cell.method, f"{cell.bits:g}") in known and not given.again
                possible = cell.options.get("name") in (None, *peers)
                if re.search(given.only, str(cell)) and possible and not done:
                    try:
                        measure(cell, subject, given.peer_python)
                    except PeerFailed as error:
                        print(f"left out: {cell}, {error}", flush=True)


def _of(model: str, subject: Subject) -> list[dict[str, str]]:
    return latest(model, subject.fingerprint)


if __name__ == "__main__":
    main()
