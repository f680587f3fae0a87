"""A run writes a line for each class, continues where it was killed, and mixes no versions."""

import json

import pytest

from hf_softext.cli.coverage import coverage
from hf_softext.coverage import run
from hf_softext.coverage.results import read_results
from tests.coverage import work


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Four made-up classes, one of which takes its process down."""
    monkeypatch.setattr(run, "_discover", work.discover)
    monkeypatch.setattr(run, "probe_quietly", work.probe)


def test_every_class_has_a_row_whatever_it_does(tmp_path):
    header, rows = run.run_coverage(tmp_path / "results.jsonl")
    assert header.broken == {"gamma": "ImportError: no gammalib"}
    assert [row.name for row in rows] == sorted(work.NAMES)
    lost = next(row for row in rows if row.name == "beta.BetaForMaskedLM")
    assert (lost.status, lost.reason) == ("not run", "its process ended with exit status 1")
    assert {row.status for row in rows if row is not lost} == {"works"}


def test_a_killed_run_continues(tmp_path):
    out = tmp_path / "results.jsonl"
    _, rows = run.run_coverage(out)
    whole = out.read_text()
    lines = whole.splitlines()
    # marked, so that a row that is kept can be told from one that is made again
    kept = json.dumps({**json.loads(lines[1]), "change": 0.25})
    out.write_text("\n".join([lines[0], kept, lines[2][:9]]))
    _, again = run.run_coverage(out)
    assert [row.name for row in again] == [row.name for row in rows]
    assert again[0].change == 0.25
    assert again[1:] == rows[1:]
    assert out.read_text() == whole.replace(lines[1], kept)


def test_only_picks_classes_and_others_can_follow(tmp_path):
    out = tmp_path / "results.jsonl"
    _, rows = run.run_coverage(out, only="^alpha")
    assert {row.name.split(".")[0] for row in rows} == {"alpha"}
    _, rows = run.run_coverage(out, jobs=2)
    assert len(rows) == 4
    assert read_results(out)[1] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "("}, "is not a regular expression"),
        ({"only": "nothing"}, "matches none of the 4 model classes"),
        ({"attention": "stablemx"}, "Did you mean 'stablemax'"),
        ({"attention": "softplus"}, "choose another file"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(options, message, tmp_path):
    out = tmp_path / "results.jsonl"
    run.run_coverage(out, only="AlphaModel")
    before = out.read_text()
    with pytest.raises(ValueError, match=message):
        run.run_coverage(out, **options)
    assert out.read_text() == before


def test_other_files_are_left_alone(tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("milk, eggs\n")
    with pytest.raises(ValueError, match="not a file of coverage results"):
        run.run_coverage(out)
    assert out.read_text() == "milk, eggs\n"


def test_the_command_prints_the_chosen_classes_and_writes_the_page_of_all(tmp_path, capsys):
    out, docs = tmp_path / "results.jsonl", tmp_path / "docs" / "coverage.md"
    coverage(out, "stablemax", "beta", 1, None, True)
    printed = capsys.readouterr().out
    assert "not run       beta.BetaForMaskedLM: its process ended with exit status 1" in printed
    assert "works         beta.BetaModel\n" in printed
    assert "alpha" not in printed
    coverage(out, "stablemax", "", 1, docs, False)
    assert "alpha.AlphaModel" not in capsys.readouterr().out
    page = docs.read_text(encoding="utf-8")
    assert "4 classes in 2 model folders" in page
    assert "| gamma | all | ImportError: no gammalib |" in page
    with pytest.raises(ValueError, match="leave out --only"):
        coverage(out, "stablemax", "beta", 1, docs, False)
