"""Adapters of peft on a quantized model."""

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model

from tests.quantization.checkpoints import load, logits, quantize, quantized_modules, saved

# made anew for each test: peft writes into them
ADAPTERS = {
    "lora": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "lora-all-linear": lambda: LoraConfig(r=4, target_modules="all-linear"),
    "dora": lambda: LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True),
    "rslora": lambda: LoraConfig(r=4, target_modules=["q_proj"], use_rslora=True),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: LoHaConfig(r=4, target_modules=["q_proj", "up_proj"]),
    "vera": lambda: VeraConfig(r=4, target_modules=["q_proj"]),
    "oft": lambda: OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"]),
}
# the newest transformers has other names for it, which neither peft nor the older ones know
pytestmark = pytest.mark.filterwarnings(r"ignore:`\w*gradient_checkpointing\w*` is deprecated")


def train(model, steps=5):
    ids = torch.arange(3, 12)[None]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_learn_and_come_back(name, tmp_path):
    folder = saved("llama", tmp_path)
    base = load("llama", folder)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    plain = logits(base)
    model = get_peft_model(base, ADAPTERS[name]())
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


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "t5"])
def test_all_linear_modules_of_other_models(name, tmp_path):
    model = quantize(name, tmp_path)
    count = len(quantized_modules(model))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert len(quantized_modules(wrapped)) == count
    assert sum("lora_A" in key for key, _ in wrapped.named_parameters()) >= count


def test_gradient_checkpointing(tmp_path):
    grads = []
    for checkpointing in (False, True):
        base = quantize("llama", tmp_path)
        torch.manual_seed(0)
        model = get_peft_model(base, ADAPTERS["lora-all-linear"]()).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        # so many that the first layer, whose input has no gradient, takes the same path
        ids = torch.arange(3, 23)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][key], grads[1][key], atol=1e-6) for key in grads[0])


@pytest.mark.parametrize("name", ["lora", "dora", "lora-all-linear"])
def test_merging_says_what_to_do_and_that_works(name, tmp_path):
    model = get_peft_model(quantize("llama", tmp_path), ADAPTERS[name]())
    train(model)
    model.eval()
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises((ValueError, TypeError, NotImplementedError), match="dequantize"):
            merge()
    # nothing is half merged
    assert torch.equal(logits(model), expected)
    model.dequantize()
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load("llama", tmp_path / "merged")), logits(merged))


def test_merging_on_layers_that_are_transposed(tmp_path):
    model = get_peft_model(
        quantize("gpt2", tmp_path), LoraConfig(r=4, target_modules=["c_attn", "c_fc"])
    )
    train(model)
    model.eval()
    expected = logits(model)
    model.dequantize()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-3)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=1e-3)


def test_adapters_of_transformers_own(tmp_path, monkeypatch):
    # the newest transformers asks for a peft that is not out everywhere, for the sake of MoE
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    folder = saved("llama", tmp_path)
    model = load("llama", folder)
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    train(model)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert not (tmp_path / "adapter" / "README.md").exists()
    again = load("llama", folder)
    again.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
