"""`softext verify-fit` and `softext report`, as a user types them."""

import re
import subprocess
import sys
import warnings

import pytest

from tests.cli.test_cli import softext  # noqa: F401  a fixture
from tests.training.conftest import bert_folder, llama_folder  # noqa: F401  fixtures
from tests.training.verifier.test_run import completions_file, texts_file

QUICK = ["--epochs", 5, "--num-splits", 1, "--exemplar-dim", 8, "--use-cpu", "--disable-tqdm"]


def test_fit_and_report_say_what_they_reached(softext, bert_folder, tmp_path):  # noqa: F811
    out, data = tmp_path / "head", texts_file(tmp_path, 90)
    words = ["verify-fit", bert_folder, "--data", data, "--out", out, "--alpha", 0.8, *QUICK]
    status, printed, err = softext(*words)
    assert status == 0, err
    lines = printed.splitlines()
    assert f"loading {bert_folder}, reading {data} ...\n" in err
    assert lines[-1] == f"saved in {out}"
    assert any(line.startswith("all: accuracy 0.") for line in lines)
    assert sum("of 9 held-out rows" in line for line in lines) == 4
    status, printed, err = softext("report", out)
    assert status == 0, err
    assert printed == f"The report is {out / 'report.html'}\n"
    assert "the figures flatter" in (out / "report.html").read_text("utf-8")
    page = tmp_path / "page.html"
    test = texts_file(tmp_path, 30, seed=1)
    words = ["report", out, "--data", test, "--model", bert_folder, "--out", page, "--use-cpu"]
    status, printed, err = softext(*words, "--worst", 2)
    assert status == 0, err
    text = page.read_text("utf-8")
    assert "On 30 rows of rows.csv, none of which is among the rows that the head compares" in text
    assert text.count("nearest training row<") == 2


def test_completions_with_columns_of_other_names(softext, llama_folder, tmp_path):  # noqa: F811
    data = completions_file(tmp_path, 90)
    text = (tmp_path / "answers.csv").read_text("utf-8")
    (tmp_path / "answers.csv").write_text(text.replace("is_good", "right", 1), "utf-8")
    words = ["verify-fit", llama_folder, "--data", data, "--out", tmp_path / "head", *QUICK]
    status, _, err = softext(*words)
    assert status == 2
    assert "the data has the columns prompt, completion, right" in err
    status, printed, err = softext(*words, "--good-column", "right")
    assert status == 0, err
    assert f"saved in {tmp_path / 'head'}" in printed
    words = ["report", tmp_path / "head", "--data", data, "--model", llama_folder, "--use-cpu"]
    # all but those that were held out
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, err = softext(*words, "--good-column", "right")
    assert status == 0, err
    assert re.search(r"^softext: 8\d of 90 rows of answers\.csv are left out", err, re.MULTILINE)
    page = (tmp_path / "head" / "report.html").read_text("utf-8")
    assert "A row is a completion, and right if it is good." in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify-fit", "FOLDER"], "output_dir is missing"),
        (["verify-fit", "FOLDER", "--out", "new"], "data is missing"),
        (["verify-fit", "FOLDER", "--alpah", "0.9"], "unknown argument '--alpah'. Did you mean"),
        (["verify-fit", "FOLDER", "--out", "new", "--data", "DATA", "--alpha", "95"], "alpha=95"),
        (["verify-fit", "missing.yaml"], "missing.yaml"),
        (["report", "nowhere"], "nowhere is not a folder of an SDM head"),
        (["report", "FOLDER"], "it is no folder of an SDM head"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_with_one_line_and_status_2(
    words,
    message,
    softext,  # noqa: F811
    bert_folder,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    names = {"FOLDER": bert_folder, "DATA": texts_file(tmp_path, 30)}
    status, _, err = softext(*(names.get(word, word) for word in words))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.partial").exists()


def test_help_lists_every_argument_without_loading_torch():
    code = (
        "import sys\nfrom hf_softext.cli import app\n"
        "sys.argv = ['softext', 'verify-fit', '--help']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    for name in ("--alpha", "--good_column", "--num-splits", "--report", "--out", "--data"):
        assert name in done.stdout
