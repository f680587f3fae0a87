"""The report of a quantization: one HTML page of tables and inline SVG, no scripts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_softext.training import html_page
from hf_softext.training.quantize import plots
from hf_softext.training.quantize.plots import LABELS
from hf_softext.version import __version__

if TYPE_CHECKING:
    from hf_softext.training.quantize.run import QuantizeResult


def write_report(path: Path, facts: dict[str, Any], result: "QuantizeResult") -> None:
    """Write the page.

    Args:
        path: of the file.
        facts: what was quantized, how and with which data, as `quantization_results.json` has it.
        result: what was reached.
    """
    title = f"{result.folder.name}: {result.size.bits:.3g} bits a weight"
    summary = (
        f"{facts['source']} ({facts['model_class']}), its linear layers quantized by BAQ. "
        f"{result.size.bits:.4f} true bits a quantized weight, everything counted that is stored "
        f"for it; {facts['bits']:g} were asked for."
    )
    parts = [html_page.paragraph(summary), *_quality(facts, result), *_sizes(result)]
    parts += _bits(result) + _losses(facts, result)
    settings = json.dumps(facts, indent=1)
    parts += [html_page.heading("Settings"), html_page.preformatted(settings)]
    parts.append(html_page.paragraph(f"hf_softext {__version__}", note=True))
    path.write_text(html_page.page(title, parts), encoding="utf-8")


def _quality(facts: dict[str, Any], result: "QuantizeResult") -> list[str]:
    measured = result.points[0].quality
    kind = next((kind for kind in ("perplexity", "cosine") if kind in measured), None)
    if kind is None:
        return []
    what = (
        "Perplexity on"
        if kind == "perplexity"
        else "Mean cosine of the last hidden states to the original's, on"
    )
    best = min if kind == "perplexity" else max
    rows, bold = [], set()
    for point in result.points:
        name = "this model" if point is result.points[1] else LABELS.get(point.method, point.method)
        value = point.quality[kind]
        rows.append(
            [name, f"{point.asked:g}", f"{point.bits:.3f}", f"{point.bytes:,}", f"{value:.4f}"]
        )
        rivals = [
            other.quality[kind]
            for other in result.points[1:]
            if round(other.asked, 6) == round(point.asked, 6)
        ]
        if point.method != "original" and len(rivals) > 1 and value == best(rivals):
            bold.add((len(rows) - 1, 4))
    columns = ["", "bits asked for", "true bits", "bytes in all", kind]
    return [
        html_page.heading("Quality"),
        html_page.paragraph(
            f"{what} {measured['tokens']:,} tokens: the last {facts['held_out']:.0%} of "
            f"{facts['data']}, which nothing was calibrated with. All are quantized from the same "
            "model, with the same text, ranges and order of columns; GPTQ and rounding to nearest "
            "give every column the same width, for which the number of bits is nominal. Bold: the "
            "best of those with the same bits asked for."
        ),
        html_page.picture(plots.quality_plot(result.points, kind)),
        html_page.table(columns, rows, bold),
    ]


def _sizes(result: "QuantizeResult") -> list[str]:
    size, original = result.size, result.points[0]
    before = original.bytes - size.embedding_bytes - size.other_bytes
    rows = [
        [name, f"{was:,}", f"{now:,}", f"{was / now:.2f}" if now else ""]
        for name, was, now in (
            ("quantized layers", before, size.quantized_bytes),
            ("embeddings and head", size.embedding_bytes, size.embedding_bytes),
            ("all else", size.other_bytes, size.other_bytes),
            ("together", original.bytes, size.bytes),
        )
    ]
    return [
        html_page.heading("Size"),
        html_page.table(["bytes of", "original", "quantized", "ratio"], rows),
        html_page.paragraph("Tensors only; a file has a header besides.", note=True),
    ]


def _bits(result: "QuantizeResult") -> list[str]:
    counts = result.size.widths
    rows = [["columns", *(f"{count:,}" for count in counts)]]
    return [
        html_page.heading("Where the bits are"),
        html_page.paragraph(
            "Bits of a weight in each module, level map and ranges included; then the columns of "
            "each module, sorted by their width."
        ),
        html_page.picture(plots.bits_map(result.size.modules)),
        html_page.table(["bits", *map(str, range(len(counts)))], rows),
        html_page.picture(plots.column_map(result.size.modules)),
    ]


def _losses(facts: dict[str, Any], result: "QuantizeResult") -> list[str]:
    before, after = (
        sum(values) / len(values)
        for values in zip(*((one.uniform_loss, one.loss) for one in result.modules), strict=True)
    )
    inputs = (
        "on the calibration text" if facts["solver"] == "gptq" else "for inputs that are all alike"
    )
    return [
        html_page.heading("What each layer loses"),
        html_page.paragraph(
            f"Energy of a module's output error relative to that of its output, {inputs}: with one "
            "width for all of its columns, the whole one nearest to its average, and with the "
            "widths that they were given. Where the average is not whole, the two differ in size. "
            f"Mean {before:.3g} and {after:.3g}."
        ),
        html_page.picture(plots.loss_plot(result.modules)),
    ]
