"""The names are there whichever import comes first, and registering again changes nothing."""

import subprocess
import sys

import pytest
from transformers import AttentionInterface, AttentionMaskInterface

import hf_softext
from hf_softext.catalog import methods

CHECK = """
from transformers import BertConfig, BertModel
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
config = BertConfig(**sizes, vocab_size=9)
config._attn_implementation = "softplus"
assert BertModel(config).config._attn_implementation == "softplus"
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_softext\nimport transformers\nimport hf_softext",
        "import transformers.modeling_utils\nimport hf_softext",
        "import transformers\nimport hf_softext",
    ],
    ids=["before transformers, twice", "after its models", "after its lazy shell"],
)
def test_names_are_there_in_a_fresh_process(imports):
    done = subprocess.run(
        [sys.executable, "-c", imports + CHECK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_register_is_idempotent():
    names = [row.name for row in methods("attention")]
    before = dict(AttentionInterface._global_mapping)
    assert hf_softext.register() == names
    assert hf_softext.register() == names
    assert AttentionInterface._global_mapping == before
    assert all(name in AttentionMaskInterface._global_mapping for name in names)


def test_a_name_that_another_package_took_is_not_overwritten(monkeypatch):
    def other(*args, **kwargs):
        raise AssertionError("never called")

    monkeypatch.setitem(AttentionInterface._global_mapping, "stablemax", other)
    with pytest.raises(ValueError, match="'stablemax' is taken by"):
        hf_softext.register()
    assert AttentionInterface._global_mapping["stablemax"] is other
