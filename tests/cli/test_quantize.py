"""`softext quantize` and `softext export`, as a user types them."""

import subprocess
import sys

import pytest
import transformers as hf

from tests.cli.test_cli import softext  # noqa: F401  a fixture
from tests.training.conftest import bert_folder, texts  # noqa: F401  fixtures


def test_quantize_and_export_say_what_they_reached(softext, bert_folder, texts, tmp_path):  # noqa: F811
    out, plain = tmp_path / "small", tmp_path / "plain"
    words = ["quantize", bert_folder, "--bits", "4.5", "--solver", "rtn", "--data", texts]
    words += ["--seqlen", 32, "--test-nsamples", 4, "--out", out]
    status, printed, err = softext(*words)
    assert status == 0, err
    lines = printed.splitlines()[-4:]
    assert lines[0].endswith("(4.5 asked for)")
    assert "times as much" in lines[1]
    assert lines[2].startswith("cosine of the last hidden states to the original's, held out: 0.9")
    assert lines[3] == f"saved in {out}"
    assert hf.AutoConfig.from_pretrained(out).quantization_config["bits"] == 4.5
    status, printed, _ = softext("export", out, "--dtype", "float16", "--out", plain)
    assert status == 0
    assert printed.endswith(f"saved in {plain}\n")
    assert hf.AutoModel.from_pretrained(plain).dtype.itemsize == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantize", "FOLDER", "--out", "new"], "data is missing: solver='gptq'"),
        (["quantize", "FOLDER", "--nsamples", "3"], "output_dir is missing"),
        (["quantize", "FOLDER", "--bitz", "3"], "unknown argument '--bitz'. Did you mean 'bits'"),
        (["quantize", "missing.yaml"], "missing.yaml"),
        (["quantize", "FOLDER", "--solver", "rtn", "--bits", "1", "--out", "new"], "bits=1 cannot"),
        (["export", "FOLDER", "--out", "new"], "no BAQ checkpoint (not quantized)"),
        (["export", "no/such/folder", "--out", "new"], "no/such/folder"),
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
    status, _, err = softext(*(bert_folder if word == "FOLDER" else word for word in words))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.partial").exists()


def test_help_lists_every_argument_without_loading_torch():
    code = (
        "import sys\nfrom hf_softext.cli import app\nsys.argv = ['softext', 'quantize', '--help']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    for name in ("--bits", "--bit-range", "--report_bits", "--modules_to_not_convert", "--out"):
        assert name in done.stdout
