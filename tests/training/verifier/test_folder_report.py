"""The report of a folder: what it measures on is what the head has not seen, and of its classes."""

import re

import pytest

from hf_softext import SdmHead
from hf_softext.training.verifier.folder_report import report_folder
from tests.training.verifier.test_run import fitted, rows, write

COLUMNS = ["text", "label"]


@pytest.fixture
def head_folder(bert_folder, tmp_path):
    # all rows go into the fit, half of them into the support
    data = write(tmp_path / "rows.csv", COLUMNS, rows(120))
    fitted(tmp_path / "head", bert_folder, data, held_out=0.0, epochs=30)
    return tmp_path / "head"


def report(folder, model, data):
    page = report_folder(str(folder), data, str(model), use_cpu=True)
    return re.sub(r"\s+", " ", page.read_text("utf-8"))


def test_rows_of_the_fit_are_told_and_left_out(head_folder, bert_folder, tmp_path):
    fit = set(dict(rows(120)))
    new = [row for row in rows(60, seed=1) if row[0] not in fit]
    support = set(SdmHead.from_pretrained(head_folder).support_texts)
    mixed = write(tmp_path / "mixed.csv", COLUMNS, [*new, *rows(120)])
    told = f"{len(support)} are among its support, {120 - len(support)} its calibration rows"
    with pytest.warns(UserWarning, match=f"120 of {120 + len(new)} rows of mixed.csv .*{told}"):
        text = report(head_folder, bert_folder, mixed)
    assert f"On {len(new)} rows of mixed.csv: 120 others are left out" in text
    assert "has not seen" not in text
    # the figures are those of the new rows alone
    alone = report(head_folder, bert_folder, write(tmp_path / "new.csv", COLUMNS, new))
    assert f"On {len(new)} rows of new.csv, none of which is among" in alone
    tables = [re.findall(r"<table>.*?</table>", page)[0] for page in (text, alone)]
    assert tables[0] == tables[1]
    with pytest.raises(ValueError, match=r"every one of the 120 rows of rows\.csv is one that"):
        report(head_folder, bert_folder, str(tmp_path / "rows.csv"))


def test_labels_that_are_no_classes_are_out_of_scope(head_folder, bert_folder, tmp_path):
    fit = set(dict(rows(120)))
    inside = [row for row in rows(40, seed=1) if row[0] not in fit]
    # their words are those of a class, so that some are admitted
    outside = [(text, "oos") for text, _ in rows(40, seed=2) if text not in fit]
    data = write(tmp_path / "both.csv", COLUMNS, [*inside, *outside])
    said = rf"{len(outside)} rows of both\.csv are reported as out of scope, .*: oos\."
    with pytest.warns(UserWarning, match=said):
        text = report(head_folder, bert_folder, data)
    assert f"On {len(inside)} rows of both.csv, none" in text
    share = re.search(rf"On {len(outside)} rows of both.csv whose .* classes: ([\d.]+)% are", text)
    assert share is not None
    admitted = round(float(share[1]) / 100 * len(outside))
    assert admitted > 0
    assert f"<td>admitted</td><td>{admitted}</td><td>{admitted}</td>" in text
    # without any of a class, the calibration rows stand in
    alone = write(tmp_path / "oos.csv", COLUMNS, outside)
    with pytest.warns(UserWarning, match="out of scope"):
        text = report(head_folder, bert_folder, alone)
    assert "the figures flatter" in text
    assert f"On {len(outside)} rows of oos.csv whose label is none" in text
