"""The linear kernel goes into the weights and comes out again; the others say that they cannot."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear
from tests.adapters.models import QUIET, classifier, logits, randomize, row

pytestmark = QUIET
FORMS = [
    {"placement": placement, "down_sample": down}
    for placement in ("serial", "parallel")
    for down in (None, 3)
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))


def layer(base=None, **given):
    config = SnnkConfig(num_features=4, kernel="linear", **given)
    base = nn.Linear(5, 7) if base is None else base
    return randomize(SnnkAdapterLinear(base, "default", config, "block.dense"))


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items() if "snnk_" not in key}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@forms
@pytest.mark.parametrize("base", [lambda: nn.Linear(5, 7), lambda: Conv1D(7, 5)])
def test_a_merged_layer_computes_the_same_and_comes_back(form, base):
    module = layer(base(), **form)
    nn.init.normal_(module.base_layer.bias)
    x, before = torch.randn(6, 5), weights(module)
    expected = module(x)
    module.merge(safe_merge=True)
    assert module.merged
    assert not same(weights(module), before)
    assert module.base_layer.weight.is_contiguous()
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.base_layer(x), expected, atol=1e-5, rtol=1e-5)
    with pytest.warns(UserWarning, match="already merged"):
        module.merge()
    module.unmerge()
    assert same(weights(module), before)
    assert torch.equal(module(x), expected)
    with pytest.warns(UserWarning, match="Already unmerged"):
        module.unmerge()
    module.merge()
    module.enable_adapters(False)
    base_output = module(x)
    assert not module.merged
    assert same(weights(module), before)
    assert torch.equal(base_output, module.base_layer(x))


@forms
def test_several_adapters_in_their_order(form):
    module = layer(**form)
    config = SnnkConfig(num_features=6, kernel="linear", placement="serial")
    module.update_layer("second", config, "block.dense")
    module.set_adapter(["default", "second"])
    randomize(module)
    x, before = torch.randn(6, 5), weights(module)
    expected = module(x)
    module.merge()
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    module.unmerge()
    # one after the other
    module.merge(adapter_names=["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        module.merge(adapter_names=["second"])
    assert module.merged_adapters == ["default", "second"]
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    module.unmerge()
    assert same(weights(module), before)


def test_what_a_parallel_adapter_adds():
    module = layer(placement="parallel")
    delta = module.get_delta_weight("default")
    x = torch.randn(6, 5)
    torch.testing.assert_close(module(x) - module.base_layer(x), x @ delta.T, atol=1e-5, rtol=1e-5)
    assert module.supports_lora_conversion()
    assert layer(Conv1D(7, 5), placement="parallel").get_delta_weight("default").shape == (5, 7)
    with pytest.raises(ValueError, match="serial"):
        layer(placement="serial").get_delta_weight("default")
    assert not layer(placement="serial").supports_lora_conversion()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    module = layer(nn.Linear(5, 7).to(dtype), placement="serial")
    matrix = module._matrix("default")
    assert matrix.dtype == torch.float32
    exact = (torch.eye(7) + matrix) @ module.base_layer.weight.float()
    before = weights(module)
    module.merge()
    torch.testing.assert_close(module.base_layer.weight, exact.to(dtype), atol=0, rtol=1e-2)
    assert module.base_layer.weight.dtype == dtype
    module.unmerge()
    assert same(weights(module), before)


def test_a_model_that_was_cast_after_the_merge_unmerges_in_its_new_dtype():
    module = layer()
    before = module.base_layer.weight.data.clone()
    module.merge()
    module.bfloat16()
    module.unmerge()
    assert torch.equal(module.base_layer.weight.data, before.bfloat16())


def test_a_bias_that_has_no_place():
    module = layer(nn.Linear(5, 7, bias=False), down_sample=3)
    before = weights(module)
    with pytest.raises(ValueError, match="has a bias"):
        module.merge()
    assert not module.merged
    assert same(weights(module), before)
    nn.init.zeros_(module.snnk_up_bias["default"])
    x = torch.randn(6, 5)
    expected = module(x)
    module.merge()
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["snnk_weight", "snnk_gate", "snnk_projection"])
def test_safe_merge_finds_nan(part):
    module = layer()
    with torch.no_grad():
        getattr(module, part)["default"].view(-1)[0] = torch.nan
    before = weights(module)
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        module.merge(safe_merge=True)
    assert not module.merged
    assert same(weights(module), before)


@forms
@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "t5"])
def test_a_merged_model(form, name):
    case = row(name)
    base = case.build()
    kept = copy.deepcopy(base)
    config = SnnkConfig(num_features=4, kernel="linear", target_modules="all-linear", **form)
    model = get_peft_model(base, config).eval()
    randomize(model)
    for key, parameter in model.named_parameters():
        # most of these layers have no bias
        if "snnk_up_bias" in key:
            nn.init.zeros_(parameter)
    inputs = case.inputs()
    expected = case.run(model, inputs)

    def check(model):
        for ours, theirs in zip(case.run(model, inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)

    model.merge_adapter()
    check(model)
    model.unmerge_adapter()
    for ours, theirs in zip(case.run(model, inputs), expected, strict=True):
        assert torch.equal(ours, theirs)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is type(kept)
    assert merged.state_dict().keys() == kept.state_dict().keys()
    check(merged)


@pytest.mark.parametrize(
    "given",
    [{"kernel": "relu"}, {"kernel": "cos"}, {"kernel": "linear", "normalize": "unit"}],
    ids=str,
)
def test_what_is_not_linear_is_refused_before_anything_changes(given):
    model = randomize(get_peft_model(classifier(), SnnkConfig(num_features=4, **given))).eval()
    before, expected = weights(model), logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"'default'.*cannot be merged.*kernel='linear'"):
            merge()
    assert same(weights(model), before)
    assert torch.equal(logits(model), expected)
    assert isinstance(model, PeftModel)
    assert all(not m.merged for m in model.modules() if isinstance(m, SnnkAdapterLinear))
    base = model.unload()
    assert torch.equal(logits(base), logits(classifier()))


def _not_a_number(model):
    model.snnk_gate["default"].data[0] = torch.nan


def _beyond_half(model):
    model.base_layer.half()
    model.snnk_gate["default"].data.fill_(1e6)


def _without_a_bias(model):
    model.base_layer.bias = None


def _tied(model):
    model.other = nn.Linear(4, 4)
    model.other.weight = model.base_layer.weight


def _twice(model):
    model.other = model.base_layer


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_not_a_number, "NaNs detected"),
        (_beyond_half, "infinity"),
        (_without_a_bias, "has a bias"),
        (_tied, r"weight of 1 is that of another module"),
        (_twice, r"weight of 1 is that of another module"),
    ],
)
@pytest.mark.parametrize("unload", [True, False])
def test_what_the_last_layer_cannot_take_changes_none(spoil, message, unload):
    config = SnnkConfig(
        num_features=4, kernel="linear", down_sample=None, target_modules=["0", "1"]
    )
    if spoil is _without_a_bias:
        config.down_sample = 3
    model = randomize(get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), config))
    spoil(model.base_model.model[1])
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        (model.merge_and_unload if unload else model.merge_adapter)(safe_merge=True)
    assert same(weights(model), before)
    assert all(isinstance(one, SnnkAdapterLinear) for one in model.base_model.model)


def test_a_block_that_is_used_twice_is_merged():
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    config = SnnkConfig(num_features=4, kernel="linear", target_modules=["0.0"])
    model = randomize(get_peft_model(nn.Sequential(block, block), config))
    x = torch.randn(3, 4)
    expected = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_one_layer_that_cannot_be_merged_keeps_all_of_them_apart():
    model = get_peft_model(
        classifier(), SnnkConfig(kernel="linear", target_modules=["attention.output.dense"])
    )
    model.add_adapter("relu", SnnkConfig(target_modules=["layer.1.output.dense"]))
    model.base_model.set_adapter(["default", "relu"])
    randomize(model)
    before = weights(model)
    with pytest.raises(ValueError, match=r"'relu'.*cannot be merged"):
        model.merge_adapter()
    assert same(weights(model), before)
    model.merge_adapter(["default"])
    assert not same(weights(model), before)
