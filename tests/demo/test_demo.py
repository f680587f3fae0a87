"""The demonstration's parts at their smallest; `softext demo --quick` runs the whole."""

import re

import pytest
import torch
from transformers import AutoModel

from hf_softext.demo.corpora import clinc150, passages, shakespeare
from hf_softext.demo.language_model import (
    VARIANTS,
    Budget,
    build,
    decode,
    encode,
    round_trip,
    run_variant,
)
from hf_softext.demo.report import adoption_plot, length_plot
from hf_softext.demo.sentence import Ruler, Scale, minilm, write_adoption_texts
from hf_softext.training.html_page import page, picture, table


def test_bundled_texts_are_whole():
    train, test = shakespeare()
    assert len(train) + len(test) == 1_115_394
    assert {name: len(rows) for name, rows in clinc150().items()} == {
        "train": 15000,
        "val": 3000,
        "test": 4500,
    }
    assert len({intent for _, intent in clinc150()["train"]}) == 150


def test_passages_have_the_asked_length_and_repeat():
    text = " ".join(map(str, range(500)))
    found = passages(text, 20, words=(5, 9))
    assert found == passages(text, 20, words=(5, 9))
    assert all(5 <= len(passage.split()) <= 9 and passage in text for passage in found)


def test_bytes_round_trip():
    assert decode(encode("Où est-il?")) == "Où est-il?"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.label)
def test_variants_start_equal_train_and_reload(variant, tmp_path):
    first = build(VARIANTS[0])
    assert torch.equal(build(variant).lm_head.weight, first.lm_head.weight)
    outcome, model = run_variant(variant, Budget(16, 3, 4, 512), tmp_path / "work")
    assert list(outcome.losses) == [16, 32, 64, 128, 256]
    assert all(0 < loss < 6 for loss in outcome.losses.values())
    assert outcome.sample.startswith("ROMEO:\n")
    if variant.attention in ("softplus", "softplus_reweighted"):
        assert f"reloaded as '{variant.attention}'" in round_trip(model, tmp_path / "saved")


def test_ruler_finds_the_original_equal_to_itself(tmp_path):
    ruler = Ruler(minilm(), Scale(train_rows=300, test_rows=150, long_rows=8))
    measures = ruler.measure(AutoModel.from_pretrained(minilm()))
    assert measures.cosine == pytest.approx(1, abs=1e-5)
    assert measures.long_cosine == pytest.approx(1, abs=1e-5)
    # two queries an intent already separate most of them
    assert measures.probe > 0.5
    write_adoption_texts(tmp_path / "texts.txt")
    assert len((tmp_path / "texts.txt").read_text(encoding="utf-8").split("\n")) == 16_500


def test_report_is_self_contained_and_escapes():
    parts = [
        table(["a", "b"], [["<x>", "1"], ["y", "2"]], best={(0, 1)}),
        picture(length_plot({"one": {8: 2.0, 16: 2.5}, "two": {8: 2.1, 16: 2.2}}, 8)),
        picture(adoption_plot({"one": (0.8, 0.9)})),
    ]
    text = page("<title>", parts)
    assert "&lt;x&gt;" in text
    assert "<td class=best>1</td>" in text
    assert text.count("<svg") == text.count("</svg>") == 2
    # nothing is fetched: the only addresses are XML namespaces and references within the page
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*", text.replace("xlink:href", "href")) == []
