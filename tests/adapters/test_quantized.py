"""Adapters on quantized models."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear
from tests.adapters.models import QUIET, randomize
from tests.quantization.checkpoints import load, logits, quantize, quantized_modules, saved

pytestmark = QUIET


def train(model, steps=8):
    ids = torch.arange(3, 12)[None]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=0.05)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kernel", ["relu", "linear", "cos"])
@pytest.mark.parametrize("placement", ["serial", "parallel"])
def test_on_baq_adapters_learn_and_come_back(kernel, placement, tmp_path):
    folder = saved("llama", tmp_path)
    base = load("llama", folder)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    plain = logits(base)
    model = get_peft_model(base, SnnkConfig(num_features=8, kernel=kernel, placement=placement))
    assert torch.equal(logits(model), plain)
    losses = train(model)
    assert losses[-1] < losses[0]
    model.eval()
    expected = logits(model)
    assert not torch.equal(expected, plain)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load("llama", folder), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    kept = {
        key.replace("base_layer.", ""): t for key, t in model.base_model.model.state_dict().items()
    }
    assert all(torch.equal(kept[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "t5"])
def test_all_linear_modules_of_other_baq_models(name, tmp_path):
    model = quantize(name, tmp_path)
    count, plain = len(quantized_modules(model)), logits(model)
    wrapped = get_peft_model(model, SnnkConfig(num_features=4, target_modules="all-linear"))
    assert sum(isinstance(m, SnnkAdapterLinear) for m in wrapped.modules()) >= count > 4
    assert torch.equal(logits(wrapped.eval()), plain)
    randomize(wrapped)
    assert (logits(wrapped) - plain).abs().max() > 1e-3


def test_merging_says_what_to_do_and_that_works(tmp_path):
    model = get_peft_model(quantize("llama", tmp_path), SnnkConfig(kernel="linear"))
    train(model)
    model.eval()
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"BaqLinear is not supported.*model.dequantize\(\)"):
            merge()
    # nothing is half merged
    assert torch.equal(logits(model), expected)
    model.dequantize()
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("Linear8bitLt", {"has_fp16_weights": False}),
        ("Linear8bitLt", {"has_fp16_weights": True}),
        ("Linear4bit", {"quant_type": "nf4"}),
    ],
)
def test_on_bitsandbytes(kind, given):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    dense = nn.Linear(64, 64)
    layer = getattr(bitsandbytes.nn, kind)(64, 64, **given)
    layer.load_state_dict(dense.state_dict())
    # this is what quantizes it
    base = nn.Sequential(nn.Linear(64, 64), layer.to("cpu"))
    x = torch.randn(5, 64)
    plain = base(x)
    assert not torch.equal(plain, dense(base[0](x)))
    model = get_peft_model(base, SnnkConfig(kernel="linear", target_modules=["1"]))
    assert torch.equal(model(x), plain)
    model(x).square().sum().backward()
    adapter = model.base_model.model[1]
    assert adapter.snnk_gate["default"].grad.any()
    randomize(model)
    assert (model(x) - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match=f"{kind} is not supported"):
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
