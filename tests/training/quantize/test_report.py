"""The report page says what it was given, and nothing in it comes from elsewhere."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hf_softext.quantization.baq.size import ModuleSize, SizeReport
from hf_softext.quantization.baq.work_folder import ModuleReport
from hf_softext.training.html_page import picture
from hf_softext.training.quantize import plots
from hf_softext.training.quantize.points import Point
from hf_softext.training.quantize.report import write_report
from hf_softext.training.quantize.run import QuantizeResult

FACTS = {
    "source": "org/<tiny>",
    "model_class": "LlamaForCausalLM",
    "data": "text.txt",
    "held_out": 0.1,
    "bits": 2.5,
    "solver": "gptq",
}
KINDS = ("self_attn.q_proj", "mlp.down_proj")


def sizes(blocks):
    """Modules whose columns have 2 bits, but 4 in the last block's down_proj."""
    found = []
    for block in range(blocks):
        for kind in KINDS:
            bits = 4 if (block, kind) == (blocks - 1, KINDS[1]) else 2
            widths = tuple(64 * (width == bits) for width in range(9))
            found.append(ModuleSize(f"model.layers.{block}.{kind}", 32, 64, widths))
    return tuple(found)


def result(blocks=3, quality="perplexity"):
    modules = [
        ModuleReport(one.name, 32, 64, loss=0.01, uniform_loss=0.02, tokens=99, damp=0.01)
        for one in sizes(blocks)
    ]
    values = {"original": [10.5], "baq": [12.5, 11.25], "gptq": [13.5, 11.0], "rtn": [99.5, 15.0]}
    measured = {
        name: [{quality: value, "tokens": 1234} for value in line] for name, line in values.items()
    }
    size = SizeReport(sizes(blocks), embedding_bytes=5000, other_bytes=700)
    points = [
        Point("original", 32, 32, 90000, measured["original"][0]),
        Point("baq", 2, 2.0, size.bytes, measured["baq"][0]),
        Point("baq", 3, 3.0, size.bytes + 99, measured["baq"][1]),
        *(
            Point(name, bits, bits + 0.01, size.bytes, value)
            for name in ("gptq", "rtn")
            for bits, value in zip((2, 3), measured[name], strict=True)
        ),
    ]
    return QuantizeResult(Path("somewhere/tiny-2"), size, modules, points, None)


def page(tmp_path, given):
    path = tmp_path / "report.html"
    write_report(path, FACTS, given)
    return path.read_text(encoding="utf-8")


def test_page_has_every_figure_and_fetches_nothing(tmp_path):
    text = page(tmp_path, result())
    assert text.count("<svg") == 4
    assert "org/&lt;tiny&gt;" in text
    addresses = set(re.findall(r"(?:src|href)=[\"']([^\"']{1,30})", text))
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(http" not in text
    for said in ("12.5000", "99.5000", "5,000", "90,000", "1,234 tokens", "text.txt"):
        assert said in text
    # the best at each number of bits; of the last, this table has no BAQ that wins
    assert re.findall(r"class=best>([\d.]+)<", text) == ["12.5000", "11.0000"]
    assert page(tmp_path, result()) == text


def test_cosines_are_better_above_and_models_without_text_have_no_quality(tmp_path):
    text = page(tmp_path, result(quality="cosine"))
    assert re.findall(r"class=best>([\d.]+)<", text) == ["99.5000", "15.0000"]
    assert "Mean cosine" in text
    bare = result()
    bare.points[:] = [Point("original", 32, 32, 90000, {}), Point("baq", 2, 2.0, 10, {})]
    text = page(tmp_path, bare)
    assert "Quality" not in text
    assert text.count("<svg") == 3


def test_maps_show_where_the_bits_are():
    figure = plots.bits_map(sizes(3))
    values = figure.axes[0].images[0].get_array()
    modules = sizes(3)
    assert values.shape == (3, 2)
    assert values[0, 0] == pytest.approx(modules[0].bits)
    assert values[2, 1] == pytest.approx(modules[-1].bits)
    assert values[2, 1] - values[2, 0] == pytest.approx(2)
    mixed = ModuleSize("h.0.fc", 32, 64, (0, 16, 16, 0, 0, 0, 0, 0, 32))
    columns = plots.column_map((*modules, mixed)).axes[0].images[0].get_array()
    assert set(columns[0]) == {2}
    assert [int((columns[-1] == bits).sum()) for bits in (1, 2, 8)] == [50, 50, 100]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.11.self_attn.q_proj", ("model.layers.11", "self_attn.q_proj")),
        (
            "decoder.block.0.layer.2.DenseReluDense.wi",
            ("decoder.block.0", "layer.2.DenseReluDense.wi"),
        ),
        ("model.layers.3.mlp.experts.7.up_proj", ("model.layers.3", "mlp.experts.*.up_proj")),
        ("fc", ("", "fc")),
    ],
)
def test_names_are_split_into_block_and_kind(name, place):
    assert plots.split_name(name) == place


def test_large_models_and_missing_losses_are_drawn():
    many = sizes(150)
    for figure in (plots.bits_map(many), plots.column_map(many)):
        assert len(figure.axes[0].get_yticks()) <= 64
        ElementTree.fromstring(picture(figure))
    none = [
        ModuleReport("a.0.b", 2, 2, 0.0, 0.0, 0, 0.0),
        ModuleReport("a.1.b", 2, 2, 0.1, 0.2, 9, 0.1),
    ]
    ElementTree.fromstring(picture(plots.loss_plot(none)))


def test_line_of_baq_goes_through_this_model_if_it_is_of_the_line():
    points = result().points
    lines = {
        line.get_label(): line for line in plots.quality_plot(points, "perplexity").axes[0].lines
    }
    assert list(lines["BAQ"].get_xdata()) == [2.0, 3.0]
    assert list(lines["this model"].get_ydata()) == [12.5]
    other = Point("baq", 2, 1.9, 10, {"perplexity": 12.0})
    figure = plots.quality_plot([*points, other], "perplexity")
    assert [
        list(line.get_xdata()) for line in figure.axes[0].lines if line.get_label() == "BAQ"
    ] == [[1.9, 3.0]]
