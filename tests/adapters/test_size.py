"""The size of an adapter, known before one is made."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig
from torch import nn

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.size import AdapterSize, adapter_size
from hf_softext.cli.describe import print_info
from tests.adapters.models import QUIET

pytestmark = QUIET


def bert_base():
    """On the meta device: 12 layers of width 768."""
    with torch.device("meta"):
        return hf.BertModel(hf.BertConfig())


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        # two gated adapters in each of 12 layers, 768 (R + 1) numbers each
        ({"num_features": 8}, 165_888),
        ({"num_features": 64}, 1_198_080),
        ({"num_features": 16, "down_sample": 16}, 319_488),
    ],
)
def test_a_bert_of_the_usual_size(given, trained):
    size = adapter_size(bert_base(), SnnkConfig(**given))
    assert size == AdapterSize(24, trained, 12 * (768 + 3072) * given["num_features"])


def test_a_model_stays_as_it_is_and_other_methods_can_be_counted():
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    names = [name for name, _ in model.named_modules()]
    config = SnnkConfig(num_features=4, kernel="cos", placement="parallel", target_modules=["1"])
    # half as many rows as features
    assert adapter_size(model, config) == AdapterSize(1, 3 * 5, 2 * 7)
    assert adapter_size(bert_base(), LoraConfig(r=8)) == AdapterSize(0, 294_912, 0)
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="no_such_layer"):
        adapter_size(model, SnnkConfig(target_modules=["no_such_layer"]))


def test_softext_info_counts_for_a_model(tmp_path, capsys):
    # there are no weights
    hf.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    print_info("snnk", str(tmp_path))
    out = capsys.readouterr().out
    assert "Scalable Neural Network Kernels" in out
    rows = {line.split()[1]: line.split() for line in out.splitlines() if "num_features=" in line}
    assert rows["num_features=16"][2:] == ["24", "313,344", "0.286%", "737,280"]
    assert "294,912" in next(line for line in out.splitlines() if "lora, r=8" in line)
    with pytest.raises(ValueError, match="'baq' is none"):
        print_info("baq", str(tmp_path))
