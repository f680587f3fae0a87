"""The command line, as a user types it."""

import shutil
import warnings

import pytest
import transformers as hf

from hf_softext import cli
from hf_softext.catalog import CATALOG
from hf_softext.cli import main
from hf_softext.cli.plain_math import plain_math
from hf_softext.losses.base import parameters
from tests.training.conftest import bert_folder, texts  # noqa: F401  fixtures


@pytest.fixture
def softext(monkeypatch, capsys):
    """Run `softext WORDS...`; return its exit status and what it printed."""

    def run(*words, columns=200):
        monkeypatch.setattr("sys.argv", ["softext", *map(str, words)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return run


def test_list_has_a_line_for_every_row(softext):
    status, out, _ = softext("list")
    assert status == 0
    assert all(row.name in out and row.paper.arxiv in out for row in CATALOG)


def test_names_are_whole_in_a_narrow_terminal(softext):
    _, out, _ = softext("list", columns=80)
    assert all(f" {row.name} " in out for row in CATALOG)


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_info_shows_the_paper_and_every_parameter(row, softext):
    status, out, _ = softext("info", row.name)
    assert status == 0
    assert row.paper.title in out
    assert row.usage in out
    known = {"attention": lambda: row.load().parameters, "loss": lambda: parameters(row.load())}
    assert all(name in out for name in known.get(row.family, dict)())
    # a terminal shows no LaTeX; a variable of the shell stays
    assert not {"\\", "$"} & {*out.replace("`$SOFTEXT_CACHE`", "")}


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"$$\ell = \frac{1 - p_y^{\tau-1}}{\tau-1}$$", "l = (1 - p_y^(τ-1))/(τ-1)"),
        (r"$\frac1{2T}\cdot\frac hT$ and $1$", "1/(2T) · h/T and 1"),
        (r"$\text{KL}\big(a\Vert\text{B}(\tfrac12)\big)$", "KL(a‖ B(1/2))"),
        (r"$$\log\sum_k e^{z_{ik}} \le \sqrt{R}$$", "log ∑_k e^(z_ik) ≤ sqrt(R)"),
        (r"$\log\cosh\frac{a-t}{2T} / \lVert h\rVert$", "log cosh ((a-t)/(2T)) / ‖h‖"),
        (r"`$HOME` and $\lambda_{i}\log C$", "`$HOME` and λ_i log C"),
    ],
    ids=["fraction", "short arguments", "words", "sums", "functions", "shell"],
)
def test_formulas_are_plain_text(latex, plain):
    assert plain_math(latex) == plain


def test_env_names_versions(softext):
    status, out, _ = softext("env")
    assert status == 0
    assert f"transformers {hf.__version__}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "stable_max"], "Did you mean 'stablemax'?"),
        (["verify", "FOLDER", "-a", "softplus_rewieghted"], "Did you mean 'softplus_reweighted'?"),
        (
            ["verify", "FOLDER", "-a", "softplus_reweighted", "-p", "power=0.5"],
            "power=0.5 is not allowed",
        ),
        (["verify", "FOLDER", "-a", "softplus", "-p", "scale"], "must be NAME=VALUE"),
        (["verify", "no/such/model", "-a", "softplus"], "no/such/model"),
        (["adopt", "FOLDER", "-a", "softplus", "--data", "missing.txt"], "data='missing.txt'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_with_one_line_and_status_2(words, message, softext, bert_folder, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, _, err = softext(*(bert_folder if word == "FOLDER" else word for word in words))
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_verify_counts_modules_and_needs_no_weights(softext, bert_folder):  # noqa: F811
    (bert_folder / "model.safetensors").unlink()
    status, out, _ = softext("verify", bert_folder, "--attention", "softplus")
    assert status == 0
    assert "softplus: 2 of 2 attention modules reached" in out


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (hf.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=9), "ignores it"),
        (
            hf.FalconConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
            ),
            "a table of its own",
        ),
        (
            hf.DebertaV2Config(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
            ),
            "ignores it",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_verify_refuses_models_that_ignore_it(config, reason, softext, tmp_path):
    config.save_pretrained(tmp_path)
    status, _, err = softext("verify", tmp_path, "--attention", "stablemax")
    assert status == 2
    assert reason in err


def test_adopt_writes_a_checkpoint_beside_its_parameters(softext, bert_folder, texts, tmp_path):  # noqa: F811
    out = tmp_path / "adopted"
    words = ["adopt", bert_folder, "-a", "softplus_reweighted", "--data", texts, "--out", out]
    status, printed, _ = softext(
        *words, "--steps", 2, "--batch-size", 4, "-p", "power=3", "-p", "degenerate=zero"
    )
    assert status == 0
    assert f"saved in {out}" in printed
    config = hf.AutoConfig.from_pretrained(out)
    assert config._attn_implementation == "softplus_reweighted"
    assert (config.softext["power"], config.softext["degenerate"]) == (3, "zero")
    status, _, err = softext(*words)
    assert status == 2
    assert "exists" in err


def test_demo_does_not_replace_a_folder_that_is_not_its_own(softext, tmp_path):
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.tex").write_text("years of work", encoding="utf-8")
    status, _, err = softext("demo", "--out", keep)
    assert status == 2
    assert "not an earlier demonstration" in err
    assert (keep / "thesis.tex").exists()
    shutil.rmtree(keep)


def test_a_warning_that_concerns_the_user_is_one_line(capsys, monkeypatch):
    shown = []

    def run():
        for category in (UserWarning, FutureWarning):
            warnings.warn("x is odd", category, stacklevel=1)

    monkeypatch.setattr(cli, "app", run)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda *given: shown.append(given[1]))
        cli.main()
    assert capsys.readouterr().err == "softext: x is odd\n"
    assert shown == [FutureWarning]
