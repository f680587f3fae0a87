"""What a quantized model takes on disk."""

import copy

import pytest
import torch

from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.size import ModuleSize, estimate, file_bytes, size_report
from tests.quantization.checkpoints import MODELS, dense, gptq, quantize, quantized_modules, rtn


def test_a_module_by_hand():
    # 12 rows: two bytes a plane; 2 + 2 * 3 planes
    widths = (1, 2, 0, 2, 0, 0, 0, 0, 0)
    one = ModuleSize("a", rows=12, columns=5, widths=widths)
    assert one.weights == 60
    assert one.plane_bytes == 8 * 2
    assert one.overhead_bytes == 5 + 2 * 12 + 2 * 9
    assert one.bytes == 63
    assert one.bits == 63 * 8 / 60
    # a grid through zero has two ends
    assert ModuleSize("a", 12, 5, widths, zero_point=True).bytes == 63 + 2 * 12


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard", ["1GB", "5kB"])
def test_the_report_is_the_file(name, shard, tmp_path):
    model = quantize(name, tmp_path)
    report = size_report(model)
    model.save_pretrained(tmp_path / "out", max_shard_size=shard)
    tensors, headers = file_bytes(tmp_path / "out")
    assert report.bytes == tensors
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert tensors + headers == sum(path.stat().st_size for path in files)
    for one, module in zip(report.modules, quantized_modules(model).values(), strict=True):
        planes = sum(bits * count for bits, count in enumerate(one.widths))
        assert planes == len(module.planes)
        assert sum(one.widths) == module.in_features
        stored = sum(t.nbytes for key, t in module.state_dict().items() if key != "bias")
        assert one.bytes == stored


@pytest.mark.parametrize("name", MODELS)
def test_bits_are_kept_and_known_before(name, tmp_path):
    config = rtn(bits=6.5)
    with torch.device("meta"):
        empty = MODELS[name][0](MODELS[name][1]())
    report = size_report(quantize(name, tmp_path, config))
    # less than one plane is left over, of every module where they do not compete
    assert 6.5 - 64 * len(report.modules) / report.weights < report.bits <= 6.5
    for model in (dense(name), empty):
        guess = estimate(model, config)
        assert abs(guess.bytes - report.bytes) <= 8 * len(report.modules)
        assert guess.embedding_bytes == report.embedding_bytes
        assert guess.other_bytes == report.other_bytes
        assert [one.name for one in guess.modules] == [one.name for one in report.modules]


def test_the_estimate_from_a_config(tmp_path):
    model = dense("tied-llama")
    assert estimate(model.config, 6.5) == estimate(model, BaqConfig(bits=6.5))
    half = copy.deepcopy(model.config)
    for dtype in (torch.bfloat16, "bfloat16"):
        half.dtype = dtype
        assert estimate(half, 6.5).embedding_bytes * 2 == estimate(model, 6.5).embedding_bytes
        assert half.dtype == dtype
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("allocation", ["layer", "uniform"])
def test_the_estimate_of_other_allocations(allocation, tmp_path):
    config = gptq(bits=7, allocation=allocation)
    report = size_report(quantize("llama", tmp_path, config))
    guess = estimate(dense("llama"), config)
    assert [one.bytes for one in guess.modules] == [one.bytes for one in report.modules]


def test_the_estimate_of_the_papers_allocation(tmp_path):
    config = rtn(bits=3, allocation="paper")
    report = size_report(quantize("llama", tmp_path, config))
    guess = estimate(dense("llama"), config)
    for one, module in zip(report.modules, guess.modules, strict=True):
        assert one.overhead_bytes == module.overhead_bytes
        assert sum(b * n for b, n in enumerate(module.widths)) == 3 * one.columns


def test_the_estimate_says_what_cannot_be():
    with pytest.raises(ValueError, match=r"bits=1 cannot be reached"):
        estimate(dense("llama"), 1.0)
    with pytest.raises(ValueError, match="nothing to quantize"):
        estimate(dense("llama"), rtn(modules_to_not_convert=["model"]))


def test_a_plain_model_has_no_report(tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM has no quantized module"):
        size_report(dense("llama"))
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        file_bytes(tmp_path)


def test_the_table(tmp_path):
    report = size_report(quantize("llama", tmp_path))
    lines = str(report).splitlines()
    assert len(lines) == 14 + 5
    assert lines[1].startswith("model.layers.0.self_attn.q_proj ")
    assert lines[-4].split()[:5] == [
        "quantized,",
        "14",
        "modules",
        "15,360",
        f"{report.quantized_bytes:,}",
    ]
    assert lines[-1].split() == ["together", f"{report.bytes:,}"]
    assert all(line == line.rstrip() for line in lines)
