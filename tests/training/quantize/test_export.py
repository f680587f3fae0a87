"""A quantized checkpoint as a plain one."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers as hf
from torch import nn

from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.training.quantize.export import Export
from tests.training.conftest import save_tokenizer


@pytest.fixture
def quantized(llama_folder, tmp_path):
    folder = tmp_path / "quantized"
    config = BaqConfig(bits=4, allocation="uniform", solver="rtn")
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_plain_checkpoint_computes_the_same_without_the_package(dtype, quantized, tmp_path):
    out = tmp_path / "plain"
    written = Export(str(quantized), str(out), dtype).run()
    assert written == (out / "model.safetensors").stat().st_size
    assert not out.with_name("plain.partial").exists()
    assert "quantization_config" not in json.loads((out / "config.json").read_text("utf-8"))
    model = hf.AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == (torch.float32 if dtype == "auto" else torch.bfloat16)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = hf.AutoModelForCausalLM.from_pretrained(quantized)(ids).logits
        found = model.float()(ids).logits
    tolerance = 1e-4 if dtype == "auto" else 0.05 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    card = (out / "README.md").read_text("utf-8")
    assert "Nothing of that package is needed" in card
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})\n"
        f"AutoTokenizer.from_pretrained({str(out)!r})\n"
        "print(type(model.model.layers[0].mlp.up_proj), 'hf_softext' in sys.modules)"
    )
    if dtype == "auto":
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=one)
        assert done.stdout.split("\n")[0] == f"{nn.Linear} False", done.stderr


def test_mistakes_are_named_and_nothing_is_written(quantized, llama_folder, tmp_path):
    out = str(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"no BAQ checkpoint \(not quantized\)"):
        Export(str(llama_folder), out).run()
    with pytest.raises(ValueError, match="dtype='int4'"):
        Export(str(quantized), out, "int4").run()
    with pytest.raises(FileExistsError, match="out="):
        Export(str(quantized), str(llama_folder)).run()
    with pytest.raises(ValueError, match="Unrecognized model"):
        Export(str(tmp_path), out).run()
    assert {path.name for path in tmp_path.iterdir()} == {"quantized", "tiny-llama"}


def test_interrupted_export_is_done_again(quantized, tmp_path):
    work = tmp_path / "plain.partial"
    (work / "final").mkdir(parents=True)
    (work / "final" / "model.safetensors").write_bytes(b"half")
    note = work / "request.json"
    note.write_text(json.dumps({"checkpoint": "another", "dtype": "auto"}), encoding="utf-8")
    with pytest.raises(ValueError, match="unfinished run with another checkpoint"):
        Export(str(quantized), str(tmp_path / "plain")).run()
    note.write_text(json.dumps({"checkpoint": str(quantized), "dtype": "auto"}), encoding="utf-8")
    Export(str(quantized), str(tmp_path / "plain")).run()
    hf.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not work.exists()
