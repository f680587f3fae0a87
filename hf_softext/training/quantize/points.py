"""Models that a report compares: quantized from the same model and text, measured on the same."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.size import SizeReport, size_report
from hf_softext.training.pretrained import Source
from hf_softext.training.quantize.arguments import QuantizeArguments
from hf_softext.training.quantize.quality import HeldOut


@dataclass(frozen=True)
class Point:
    """What one model takes and is worth.

    Attributes:
        method: "original", "baq", or "gptq" or "rtn" with one width for all columns.
        asked: bits that were asked for.
        bits: true bits of a quantized weight.
        bytes: all tensors of the checkpoint.
        quality: on held-out text: "perplexity" and "loss", or "cosine"; and "tokens". Empty without
            such text.
    """

    method: str
    asked: float
    bits: float
    bytes: int
    quality: dict[str, float]

    def __str__(self) -> str:
        kind = next((kind for kind in ("perplexity", "cosine") if kind in self.quality), None)
        value = f": {kind} {self.quality[kind]:.4f}" if kind else ""
        return f"{self.method}, {self.asked:g} bits ({self.bits:.3f} true){value}"


@dataclass(frozen=True)
class Planned:
    """A model that is to be made for a report."""

    method: str
    config: BaqConfig

    @property
    def key(self) -> str:
        """Of the files in the work folder."""
        return f"{self.method}-{self.config.bits:g}"


def planned(args: QuantizeArguments) -> list[Planned]:
    """What a report compares: BAQ at every average, RTN and GPTQ of one width at whole ones.

    The peers have the ranges and the order of columns that the arguments ask for, so that they
    differ from BAQ in the widths alone, and RTN in its solver.

    Raises:
        ValueError: bits out of range.
    """
    averages = sorted(set(args.report_bits))
    found = [Planned("baq", args.config(bits=bits, allocation="auto")) for bits in averages]
    for solver in ("gptq", "rtn"):
        for bits in averages:
            if bits == round(bits):
                config = args.config(bits=bits, allocation="uniform", solver=solver)
                found.append(Planned(solver, config))
    return found


class Points:
    """Makes and measures models, and keeps what was measured in a folder.

    All processes of a run must make the same calls.
    """

    def __init__(self, folder: Path, source: Source, held_out: HeldOut | None):
        """Take up what an interrupted run has left in a folder.

        Args:
            folder: where; made when there is something to keep.
            source: the original.
            held_out: to measure on, if there is text for it.
        """
        self.folder, self.source, self.held_out = folder, source, held_out
        self.state = PartialState()
        self.kept = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        }

    def original(self) -> dict[str, float]:
        """What the original is worth; it is kept by the caller, with `keep`."""
        if self.held_out is None:
            return {}
        known = self.kept.get("original")
        if known is not None and "perplexity" in known:
            return known
        return self.held_out.original(self.source.load())

    def quantized(self, one: Planned, data: Any, tokenizer: Any) -> Point:
        """Quantize the original as planned and measure it, or say what was measured before."""
        if one.key not in self.kept:
            work = self.folder / one.key
            config = one.config
            config.dataset, config.tokenizer, config.work_dir = data, tokenizer, str(work)
            model = self.source.load(config)
            self.measure(one.key, one.method, config.bits, model, size_report(model))
            self.state.wait_for_everyone()
            if self.state.is_main_process:
                shutil.rmtree(work)
        return Point(**self.kept[one.key])

    def measure(self, key: str, method: str, asked: float, model: Any, size: SizeReport) -> Point:
        """Measure a quantized model, unless that was done before with one of the same size."""
        known = self.kept.get(key, {})
        if (known.get("bits"), known.get("bytes")) != (size.bits, size.bytes):
            quality = self.held_out.measure(model) if self.held_out else {}
            self.keep(key, asdict(Point(method, asked, size.bits, size.bytes, quality)))
        return Point(**self.kept[key])

    def keep(self, key: str, value: dict[str, Any]) -> None:
        """Write down what was measured."""
        self.kept[key] = value
        if self.state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            staged = self.folder / f"{key}.tmp"
            staged.write_text(json.dumps(value), encoding="utf-8")
            os.replace(staged, self.folder / f"{key}.json")
