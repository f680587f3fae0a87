"""The whole quantization of a model: load, measure, quantize, measure, compare, save."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import AutoConfig

from hf_softext.data.texts import read_corpus
from hf_softext.quantization.baq.options import OPTIONS
from hf_softext.quantization.baq.sequences import continues_text
from hf_softext.quantization.baq.size import SizeReport, estimate, file_bytes, size_report
from hf_softext.quantization.baq.work_folder import ModuleReport
from hf_softext.training.causal_lm.model import check_attention, describe_source, load_tokenizer
from hf_softext.training.checkpoints import check_new, claim, needed, publish
from hf_softext.training.pretrained import Source, pretrained_class
from hf_softext.training.quantize.arguments import QuantizeArguments
from hf_softext.training.quantize.points import Point, Points, planned
from hf_softext.training.quantize.quality import HeldOut, hold_out
from hf_softext.version import __version__

RESULTS = "quantization_results.json"
REPORT = "report.html"

# what makes two runs the same, so that one can continue the other
_IDENTITY = [
    "model",
    "data",
    "data_config",
    "column",
    "tokenizer",
    *OPTIONS,
    "attention",
    "attention_parameters",
    "dtype",
    "held_out",
    "test_nsamples",
]


@dataclass(frozen=True)
class QuantizeResult:
    """What a quantization reached.

    Attributes:
        folder: the checkpoint.
        size: what it takes, module by module.
        modules: what became of each module.
        points: what was measured: the original, this model, and what the report compares.
        report: the HTML page, if it was asked for.
    """

    folder: Path
    size: SizeReport
    modules: list[ModuleReport]
    points: list[Point]
    report: Path | None

    def summary(self) -> str:
        """Size, quality and place, a line each."""
        original, here = self.points[:2]
        written = sum(file_bytes(self.folder))
        lines = [
            f"{here.bits:.4f} bits a quantized weight, all counted ({here.asked:g} asked for)",
            f"{_megabytes(written)} on disk, {_megabytes(self.size.embedding_bytes)} of it "
            f"embeddings and head; the original's weights take {_megabytes(original.bytes)}, "
            f"{original.bytes / written:.2f} times as much",
        ]
        measured, tokens = here.quality, f"({here.quality.get('tokens')} tokens)"
        if "perplexity" in measured:
            was, now = original.quality["perplexity"], measured["perplexity"]
            lines.append(f"held-out perplexity {was:.4f} before, {now:.4f} after {tokens}")
        if "cosine" in measured:
            value = f"{measured['cosine']:.4f} {tokens}"
            lines.append(f"cosine of the last hidden states to the original's, held out: {value}")
        lines.append(f"saved in {self.folder}")
        return "\n".join([*lines, f"report in {self.report}"] if self.report else lines)


def quantize(
    args: QuantizeArguments, tell: Callable[[str], None] = lambda line: None
) -> QuantizeResult:
    """Quantize a checkpoint to an average width.

    Work in progress lies in `<output_dir>.partial`; a run that was interrupted continues there
    when it is started again with the same arguments. `output_dir` appears at the end, complete, by
    a rename: the model, its tokenizer, a model card, `quantization_results.json`, and `report.html`
    where it is asked for. Under `accelerate launch` the processes share the calibration.

    Args:
        args: `model`, `output_dir` and `data` say what; the rest has defaults.
        tell: is called with a line before what takes long without a progress bar, and for each
            model that the report compares.

    Returns:
        What was reached.

    Raises:
        ValueError: an argument that is missing or wrong, a model that is quantized already or has
            nothing to quantize, too little text, or a partial run with other arguments.
        FileNotFoundError: no such data.
        FileExistsError: `output_dir` is there already.
        ImportError: the report is asked for without matplotlib.
    """
    name, source = needed(args, "output_dir"), needed(args, "model")
    final = Path(name)
    work = final.with_name(f"{final.name}.partial")
    args.check()
    check_attention(args.attention, args.method_parameters())
    if args.report and importlib.util.find_spec("matplotlib") is None:
        raise ImportError('report=True needs matplotlib: pip install "hf-softext[plots]"')
    check_new(final)
    state = PartialState(cpu=args.use_cpu)
    config = AutoConfig.from_pretrained(source)
    _check_plain(source, config)
    kind = pretrained_class(source, config)
    plan = planned(args) if args.report else []
    # what cannot be reached is to be known before hours of work
    for asked in (args.config(), *(one.config for one in plan)):
        estimate(config, asked)
    tokenizer = _tokenizer(args)
    texts, held_out = _texts(args, continues_text(kind, config), tokenizer, state)
    data = texts or None

    device = state.device or torch.device("cpu")
    loaded = Source(source, kind, args.dtype, args.attention, args.method_parameters(), device)
    if work.exists():
        claim(work, args, _IDENTITY)
    points = Points(work / "points", loaded, held_out)
    if points.kept:
        tell(f"{work} continues")
    if held_out is not None and "original" not in points.kept:
        tell("measuring the original on the held-out text")
    before = points.original()
    with state.main_process_first():
        claim(work, args, _IDENTITY)
    points.keep("original", before)

    blocks = str(work / "blocks")
    model = loaded.load(args.config(dataset=data, tokenizer=tokenizer, work_dir=blocks))
    size, reports = size_report(model), model.hf_quantizer.reports
    # as it was carried out, not as it was asked for
    done = model.hf_quantizer.quantization_config
    here = points.measure("this", "baq", args.bits, model, size)
    # the card says the name of the folder that it lies in
    staged = work / "final" / final.name
    if state.is_main_process:
        shutil.rmtree(staged, ignore_errors=True)
        model.save_pretrained(staged)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)
    facts = {
        "source": describe_source(source),
        "model_class": kind.__name__,
        "data": describe_source(args.data) if args.data else None,
        "held_out": args.held_out if held_out else 0.0,
        **{name: getattr(done, name) for name in OPTIONS},
        "calibration": done.calibration,
    }
    dense = model.dtype.itemsize
    del model
    plain = size.bytes - size.quantized_bytes + size.weights * dense
    found = [Point("original", 8 * dense, 8 * dense, plain, before), here]
    for number, one in enumerate(plan, start=1):
        # this very model is there already
        same = one.method == "baq" and one.config == args.config()
        point = here if same else points.quantized(one, data, tokenizer)
        found += [] if same else [point]
        tell(f"[{number}/{len(plan)}] {point}")

    report = final / REPORT if args.report else None
    result = QuantizeResult(final, size, reports, found, report)
    if state.is_main_process:
        _write_results(staged / RESULTS, facts, result)
        if report is not None:
            from hf_softext.training.quantize.report import write_report

            write_report(staged / REPORT, facts, result)
        publish(staged, final, work)
    state.wait_for_everyone()
    return result


def _check_plain(source: str, config: Any) -> None:
    """Raise ValueError for a checkpoint that is quantized."""
    found = getattr(config, "quantization_config", None)
    if found is not None:
        method = found.get("quant_method", "another method")
        way = (
            "softext export makes a plain checkpoint of it"
            if method == "baq"
            else "take the plain one"
        )
        raise ValueError(f"model={source!r} is quantized already, by {method}: {way}.")


def _texts(
    args: QuantizeArguments, whole: bool, tokenizer: Any, state: PartialState
) -> tuple[list[str], HeldOut | None]:
    """What to calibrate with and what to measure on."""
    if not args.data:
        return [], None
    with state.main_process_first():
        rows = read_corpus(args.data, args.column, args.data_config, whole)["text"]
    texts, rest = hold_out(rows, args.held_out, cut=whole)
    return texts, HeldOut(rest, tokenizer, args.test_nsamples, args.seqlen) if rest else None


def _tokenizer(args: QuantizeArguments) -> Any:
    """The tokenizer; None if nothing needs one and the checkpoint has none, as an image model's."""
    try:
        return load_tokenizer(args.tokenizer, args.model)
    except (OSError, ValueError, KeyError):
        if args.data or args.tokenizer:
            raise
        return None


def _write_results(path: Path, facts: dict[str, Any], result: QuantizeResult) -> None:
    size = result.size
    sizes = {one.name: one for one in size.modules}
    content = {
        **facts,
        "true_bits": size.bits,
        "bytes": size.bytes,
        "quantized_bytes": size.quantized_bytes,
        "embedding_bytes": size.embedding_bytes,
        "other_bytes": size.other_bytes,
        "measured": [asdict(point) for point in result.points],
        "modules": [
            {**asdict(one), "bits": sizes[one.name].bits, "widths": sizes[one.name].widths}
            for one in result.modules
        ],
        "hf_softext": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
