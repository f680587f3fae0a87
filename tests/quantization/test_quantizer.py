"""BAQ behind from_pretrained and save_pretrained."""

import copy
import json

import pytest
import torch
import transformers as hf
from transformers.pytorch_utils import Conv1D

from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.register import register_baq
from hf_softext.quantization.baq.size import code_rates, size_report
from hf_softext.registration import register
from tests.quantization.checkpoints import (
    MODELS,
    dense,
    gptq,
    load,
    logits,
    quantize,
    quantized_modules,
    rtn,
    saved,
)

WEIGHTS = "model.safetensors"


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    model = quantize(name, tmp_path, rtn())
    expected = logits(model)
    assert len(quantized_modules(model)) >= 8
    assert (expected - logits(dense(name))).abs().max() > 0
    model.save_pretrained(tmp_path / "once")
    again = load(name, tmp_path / "once")
    assert torch.equal(logits(again), expected)
    again.save_pretrained(tmp_path / "twice")
    for file in (WEIGHTS, "config.json"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    config = config_of(tmp_path / "once")
    assert config["architectures"] == [MODELS[name][0].__name__]
    assert set(config["quantization_config"]["module_planes"]) == set(quantized_modules(again))
    full, small = (
        (tmp_path / place / WEIGHTS).stat().st_size for place in (f"full-{name}", "once")
    )
    assert small < full


@pytest.mark.parametrize("name", MODELS)
def test_dequantize_gives_the_plain_model(name, tmp_path, monkeypatch):
    folder = saved(name, tmp_path)
    # the fast path for few rows rounds them to bfloat16
    monkeypatch.setenv("SOFTEXT_PACKED", "0")
    model = load(name, folder)
    expected = logits(model)
    plain = model.dequantize()
    assert not quantized_modules(plain)
    kinds = {key: type(module) for key, module in dense(name).named_modules()}
    assert {key: type(module) for key, module in plain.named_modules()} == kinds
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in config_of(tmp_path / "plain")
    assert not (tmp_path / "plain" / "README.md").exists()
    again = load(name, tmp_path / "plain")
    assert torch.equal(logits(again), logits(plain))
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-4)


def test_dequantize_to_another_dtype(tmp_path):
    model = quantize("tied-llama", tmp_path)
    plain = model.dequantize(torch.bfloat16)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    plain.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(load("tied-llama", tmp_path / "plain")), logits(plain))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_calibrated(name, tmp_path):
    config = gptq(bits=4.5, allocation="layer")
    model = quantize(name, tmp_path, config)
    expected = logits(model)
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(name, tmp_path / "out")), expected)
    written = config_of(tmp_path / "out")["quantization_config"]
    assert written["calibration"]["sequences"] == 8
    assert {"dataset", "tokenizer", "work_dir"}.isdisjoint(written)
    assert [report.name for report in model.hf_quantizer.reports] == list(quantized_modules(model))
    # the caller's own may serve for the next model
    assert config.module_planes == {}
    assert config.calibration is None
    assert config.dataset is not None


def test_paper_allocation(tmp_path):
    model = quantize("llama", tmp_path, rtn(bits=3, allocation="paper"))
    expected = logits(model)
    model.save_pretrained(tmp_path / "out")
    again = load("llama", tmp_path / "out")
    assert torch.equal(logits(again), expected)
    assert all(module.zero_point for module in quantized_modules(again).values())
    nominal, packed = code_rates(model)
    said = f"mean log2 of levels {nominal:.4f}, as the authors count, in {packed:.4f} bits"
    assert said in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert nominal < packed < size_report(model).bits


def test_half_precision_model(tmp_path):
    # T5 keeps some layers in float32 when it is loaded in float16
    model = quantize("t5", tmp_path, dtype=torch.float16)
    expected = logits(model)
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load("t5", tmp_path / "out")), expected)


def test_sharded(tmp_path):
    model = quantize("tied-llama", tmp_path)
    for place in ("once", "twice"):
        model.save_pretrained(tmp_path / place, max_shard_size="5kB")
        model = load("tied-llama", tmp_path / place)
    files = sorted(path.name for path in (tmp_path / "once").glob("*.safetensors"))
    assert len(files) > 3
    for file in [*files, "config.json", "model.safetensors.index.json"]:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    assert torch.equal(logits(model), logits(quantize("tied-llama", tmp_path)))


def test_a_model_without_and_with_a_head(tmp_path):
    """transformers fits names by the base model's prefix; so must the list of modules."""
    folder = saved("llama", tmp_path)
    base = hf.AutoModel.from_pretrained(folder)
    assert len(quantized_modules(base)) == 14
    base.save_pretrained(tmp_path / "base")
    again = hf.AutoModel.from_pretrained(tmp_path / "base")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, again(ids).last_hidden_state)
    head = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert len(quantized_modules(head)) == 14
    with torch.no_grad():
        hidden = head.model(ids).last_hidden_state
        assert torch.equal(hidden, base(ids).last_hidden_state)


def test_modules_left_out(tmp_path):
    model = quantize("llama", tmp_path, rtn(modules_to_not_convert=["o_proj", "down_proj"]))
    assert len(quantized_modules(model)) == 10
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load("llama", tmp_path / "out")), logits(model))


def test_together_with_attention_and_device_map(tmp_path):
    register()
    folder = saved("llama", tmp_path)
    options = {"attn_implementation": "softplus", "device_map": "auto"}
    model = load("llama", folder, **options)
    assert model.config._attn_implementation == "softplus"
    plain = load("llama", folder)
    plain.set_attn_implementation("softplus")
    with pytest.warns(UserWarning, match="'softplus' replaces the attention"):
        assert torch.equal(logits(model), logits(plain))
    on_the_fly = quantize("llama", tmp_path, rtn(), **options)
    assert torch.equal(logits(on_the_fly), logits(model))


def test_disk_offload(tmp_path):
    folder = saved("llama", tmp_path)
    devices = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    devices |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    options = {"device_map": devices, "offload_folder": tmp_path / "offload"}
    for more in ({}, {"offload_buffers": True}):
        model = load("llama", folder, **options, **more)
        assert torch.equal(logits(model), logits(load("llama", folder)))
        with pytest.warns(UserWarning, match="offloaded"):
            model.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(load("llama", tmp_path / "again")), logits(model))
    with pytest.raises(
        ValueError, match=r"device_map=.*Quantize without device_map, save, and load"
    ):
        quantize("llama", tmp_path, rtn(), **options)


def test_other_dtypes_leave_the_planes_alone(tmp_path):
    folder = saved("tied-llama", tmp_path)
    model = load("tied-llama", folder)
    low = load("tied-llama", folder, dtype=torch.bfloat16)
    moved = load("tied-llama", folder).to(torch.bfloat16)
    for name, module in quantized_modules(model).items():
        for other in (low, moved):
            state = other.get_submodule(name).state_dict()
            assert state.pop("bias", torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16
            for key, buffer in state.items():
                assert torch.equal(buffer, getattr(module, key)), (name, key)
        tokens = torch.randn(3, module.in_features).bfloat16()
        assert torch.equal(low.get_submodule(name)(tokens), moved.get_submodule(name)(tokens))
    low.save_pretrained(tmp_path / "low")
    assert torch.equal(logits(load("tied-llama", tmp_path / "low")), logits(low))
    for cast in ("half", "float"):
        with pytest.raises(ValueError, match="not supported for quantized"):
            getattr(model, cast)()


def test_generates(tmp_path):
    model = load("llama", saved("llama", tmp_path))
    ids = torch.arange(3, 8)[None]
    tokens = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for length in range(5, 9):
        with torch.no_grad():
            said = model(tokens[:, :length]).logits[0, -1]
        # up to the rounding of a path that depends on the number of rows
        assert said.max() - said[tokens[0, length]] < 0.05
    assert model.hf_quantizer.is_compileable


def test_only_what_is_not_quantized_learns(tmp_path):
    model = quantize("tied-llama", tmp_path).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(3, 12)[None]
    model(ids, labels=ids).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name in before if name.endswith(("norm.weight", "tokens.weight"))}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {
        name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed - {"lm_head.weight"} == learned


def test_the_trainer_asks_for_adapters(tmp_path):
    with pytest.raises(ValueError, match="attach trainable adapters"):
        hf.Trainer(quantize("llama", tmp_path), hf.TrainingArguments(tmp_path / "run"))


def test_copies_are_whole(tmp_path):
    model = quantize("llama", tmp_path)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.norm.weight.mul_(2)
    twin.save_pretrained(tmp_path / "twin")
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(load("llama", tmp_path / "twin")), logits(twin))
    assert torch.equal(logits(load("llama", tmp_path / "model")), logits(model))
    assert not torch.equal(logits(twin), logits(model))
    assert (tmp_path / "twin" / "README.md").exists()
    torch.save(twin, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(logits(whole), logits(twin))
    whole.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits(load("llama", tmp_path / "whole")), logits(twin))


def test_a_models_config_object_loads(tmp_path):
    folder = saved("llama", tmp_path)
    model = load("llama", folder)
    # checksums are of a file, which this config is not
    with pytest.warns(UserWarning, match="the model's config has no checksums"):
        again = load("llama", folder, config=model.config)
    assert torch.equal(logits(again), logits(model))
    twin = hf.LlamaForCausalLM.from_pretrained(
        None, config=model.config, state_dict=model.state_dict()
    )
    assert torch.equal(logits(twin), logits(model))


def test_needs_data_before_it_reads_weights(tmp_path):
    dense("llama").save_pretrained(tmp_path / "full")
    (tmp_path / "full" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="dataset=None: solver='gptq' needs text"):
        hf.LlamaForCausalLM.from_pretrained(tmp_path / "full", quantization_config=BaqConfig())


def test_bits_out_of_reach(tmp_path):
    with pytest.raises(ValueError, match=r"bits=1.5 cannot be reached: .* take from .* to "):
        quantize("llama", tmp_path, rtn(bits=1.5))


def test_weights_that_are_not_finite(tmp_path):
    model = copy.deepcopy(dense("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "full-llama")
    for config in (rtn(), gptq()):
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
            quantize("llama", tmp_path, config)


def test_activations_that_are_not_finite(tmp_path):
    model = copy.deepcopy(dense("llama"))
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[5] = float("inf")
    model.save_pretrained(tmp_path / "full-llama")
    with pytest.raises(ValueError, match=r"layers\.0"):
        quantize("llama", tmp_path, gptq())


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    folder = saved("llama", tmp_path)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load("llama", folder, quantization_config=rtn(bits=7))
    assert model.config.quantization_config.bits == 6
    with pytest.raises(
        ValueError, match="quantized with BaqConfig but you are passing a GPTQConfig"
    ):
        load("llama", folder, quantization_config=hf.GPTQConfig(bits=4, dataset=["a"]))


def test_a_config_that_lists_no_modules(tmp_path):
    dense("llama").save_pretrained(tmp_path / "full")
    config = hf.LlamaConfig.from_pretrained(tmp_path / "full")
    config.quantization_config = rtn()
    with pytest.raises(
        ValueError, match=r"lists no module_planes.*give quantization_config=BaqConf"
    ):
        hf.LlamaForCausalLM.from_pretrained(tmp_path / "full", config=config)


def test_another_package_has_the_name(monkeypatch):
    from transformers.quantizers import auto

    monkeypatch.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "baq", hf.GPTQConfig)
    with pytest.raises(ValueError, match="quant_method='baq' is taken by transformers"):
        register_baq()


def test_gpt2_layers_come_back_as_they_were(tmp_path):
    model = quantize("gpt2", tmp_path)
    assert isinstance(model.transformer.h[0].mlp.c_fc, BaqLinear)
    before = dense("gpt2").transformer.h[0].mlp.c_fc
    after = model.dequantize().transformer.h[0].mlp.c_fc
    assert isinstance(after, Conv1D)
    assert after.weight.is_contiguous()
    assert (after.weight - before.weight).abs().max() < 0.05 * before.weight.abs().max()
    assert torch.equal(after.bias, before.bias)
