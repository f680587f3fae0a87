"""The committed results: what they promise, that they are true, and that the page shows them."""

import importlib.metadata
import random
from datetime import date
from pathlib import Path

import pytest

from hf_softext.coverage.probe import probe
from hf_softext.coverage.report import docs_page, summary
from hf_softext.coverage.results import read_results, write_results

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.jsonl"
HEADER, ROWS = read_results(RESULTS)


def test_at_least_1050_classes_work():
    working = [row for row in ROWS if row.status == "works"]
    assert len(working) >= 1050
    assert all(row.reached > 0 and not row.bypassed for row in working)


def test_the_method_changes_what_working_classes_compute():
    changes = [row.change for row in ROWS if row.status == "works" and row.change is not None]
    assert len(changes) >= 1040
    assert sum(change > 1e-3 for change in changes) >= 0.97 * len(changes)


def test_results_say_what_made_them_and_are_small():
    assert HEADER.attention == "stablemax"
    assert HEADER.transformers.count(".") == 2
    assert HEADER.torch
    assert len({row.name for row in ROWS}) == len(ROWS) > 1900
    assert RESULTS.stat().st_size < 300_000


def test_the_page_is_made_from_the_results():
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == docs_page(HEADER, ROWS)
    for text in (HEADER.transformers, HEADER.torch, HEADER.date, f"{len(ROWS)} classes"):
        assert text in page


def test_the_page_shows_every_row_that_does_not_work():
    lines = docs_page(HEADER, ROWS).splitlines()
    for row in ROWS:
        folder, _, name = row.name.partition(".")
        assert any(line.startswith(f"| {folder} |") for line in lines)
        if row.status not in ("works", "no attention"):
            assert any(line.startswith(f"| {folder} |") and name in line for line in lines), row


def test_the_summary_counts_every_class():
    counts = [int(line[13:19]) for line in summary(HEADER, ROWS).splitlines()[1:]]
    assert sum(counts) == len(ROWS)


def test_writing_what_was_read_changes_nothing(tmp_path):
    copy = tmp_path / "copy.jsonl"
    write_results(copy, HEADER, ROWS)
    assert copy.read_bytes() == RESULTS.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_rows_drawn_at_random_are_found_again():
    installed = importlib.metadata.version("transformers")
    if installed != HEADER.transformers:
        pytest.skip(f"the results are of transformers {HEADER.transformers}, not {installed}")
    # other rows each day; those that ran into a limit depend on the machine
    steady = [row for row in ROWS if not row.reason.startswith(("took more", "its process"))]
    for row in random.Random(date.today().toordinal()).sample(steady, 10):
        again = probe(row.name, HEADER.attention)
        assert (again.status, again.reached, again.bypassed, again.idle) == (
            row.status,
            row.reached,
            row.bypassed,
            row.idle,
        ), (row, again)
