"""One adapted layer: its formula, its dtypes, its gradients."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers.pytorch_utils import Conv1D

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear, linear_sizes
from hf_softext.adapters.snnk.projection import draw
from hf_softext.functional.kernel_features import relu_features
from hf_softext.functional.unit_rows import unit_rows

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = [
    {"kernel": kernel, "placement": placement, "down_sample": down}
    for kernel in ("relu", "linear", "cos", "sin")
    for placement in ("serial", "parallel")
    for down in (None, 3)
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))


def layer(base=None, dtype=torch.float32, **given):
    base = nn.Linear(5, 7) if base is None else base
    return SnnkAdapterLinear(
        base.to(dtype), "default", SnnkConfig(num_features=4, **given), "block.dense"
    )


def trained(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return module


# their name for each part of ours
AUTHORS = {
    "gate": {"snnk_weight": "weights", "snnk_gate": "gate"},
    "updown": {"snnk_weight": "weights", "snnk_up": "up_w", "snnk_up_bias": "up_b"},
}


@pytest.mark.parametrize("form", AUTHORS)
def test_the_adapter_is_the_authors(form):
    given = load_file(GOLDEN / f"snnk_relu_adapter_{form}.safetensors")
    base = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        base.weight.copy_(torch.eye(8))
    config = SnnkConfig(num_features=6, down_sample=4 if form == "updown" else None)
    module = SnnkAdapterLinear(base, "default", config, "dense")
    with torch.no_grad():
        module.snnk_projection["default"].copy_(given["G"])
        for ours, theirs in AUTHORS[form].items():
            getattr(module, ours)["default"].copy_(given[theirs])
    x = given["x"].clone().requires_grad_()
    y = module(x)
    y.backward(given["upstream"])
    pairs = {"y": y, "grad_x": x.grad}
    for ours, theirs in AUTHORS[form].items():
        pairs[f"grad_{theirs}"] = getattr(module, ours)["default"].grad
    for name, ours in pairs.items():
        torch.testing.assert_close(ours, given[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("placement", ["serial", "parallel"])
@pytest.mark.parametrize("down_sample", [None, 3])
def test_the_formula(placement, down_sample):
    module = trained(layer(placement=placement, down_sample=down_sample, floor=-0.2, normalize=1.5))
    x = torch.randn(2, 3, 5)
    y = module.base_layer(x)
    h = x if placement == "parallel" else y
    phi = relu_features(1.5 * unit_rows(h), module.snnk_projection["default"], -0.2)
    v = module.snnk_weight["default"]
    assert v.shape == (down_sample or 7, 4)
    if down_sample is None:
        change = module.snnk_gate["default"] * (phi @ v.T)
    else:
        change = phi @ v.T @ module.snnk_up["default"].T + module.snnk_up_bias["default"]
    torch.testing.assert_close(module(x), y + change)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_identity(form, dtype, bias):
    base = nn.Linear(5, 7, bias=bias)
    module = layer(base, dtype, **form)
    for shape in ((5,), (2, 5), (2, 3, 5), (2, 1, 3, 5), (0, 3, 5)):
        x = torch.randn(shape).to(dtype) * 10
        y = module(x)
        assert y.dtype == dtype
        assert torch.equal(y, base(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), base(x))
    changed = layer(copy.deepcopy(base), dtype, **form, init_weights=False)
    x = torch.randn(2, 5).to(dtype)
    assert changed(x).isfinite().all()
    assert (changed(x) - base(x)).abs().max() > 1e-3


@forms
def test_autocast_rounds_nothing_of_the_adapter(form):
    module = trained(layer(nn.Linear(5, 7, bias=False), **form))
    nn.init.zeros_(module.base_layer.weight)
    # of a bfloat16, as a module before it would put out, or the base layer
    x = torch.randn(3, 5).bfloat16()
    exact = module.float()(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), exact.bfloat16())


@forms
def test_the_meta_device(form):
    module = layer(**form, save_projection=False)
    state = module.state_dict()
    module.to("meta")
    assert module(torch.empty(2, 5, device="meta")).shape == (2, 7)
    module.load_state_dict(state, assign=True)
    with pytest.raises(ValueError, match=r"its projection on meta.*save_projection=True"):
        module(torch.randn(2, 5))


@forms
def test_gradients(form):
    module = trained(layer(dtype=torch.float64, **form))
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert module.snnk_weight["default"].dtype == torch.float64
    names = [name for name, p in module.named_parameters() if p.requires_grad]

    def output(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    values = [module.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(output, (x, *values))


def test_at_the_start_only_the_gate_learns():
    module = layer()
    module(torch.randn(3, 5)).sum().backward()
    assert not module.snnk_weight["default"].grad.any()
    # a row of V and the features may be zero in turns
    assert module.snnk_gate["default"].grad.any()
    assert not module.snnk_projection["default"].requires_grad
    assert "default" not in dict(module.snnk_projection.named_parameters())


def test_padding_stays_what_it_is_and_nan_stays_in_its_row():
    module = trained(layer(nn.Linear(5, 7, bias=False)))
    x = torch.randn(2, 3, 5)
    x[0, 1] = 0
    clean = module(x)
    assert not clean[0, 1].any()
    x[1, 2, 3] = torch.nan
    dirty = module(x)
    assert dirty[1, 2].isnan().all()
    dirty[1, 2] = clean[1, 2]
    assert torch.equal(dirty, clean)


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_projection_is_never_rounded(form, dtype):
    expected = layer(**form).snnk_projection["default"]
    rows = 2 if form["kernel"] in ("cos", "sin") else 4
    columns = 5 if form["placement"] == "parallel" else 7
    assert torch.equal(expected, draw(rows, columns, 0, "block.dense", True))
    module = layer(dtype=dtype, **form)
    assert torch.equal(module.snnk_projection["default"], expected)
    for move in (lambda m: m.to(dtype), nn.Module.half, nn.Module.double, nn.Module.bfloat16):
        module = move(layer(**form))
        assert module.snnk_weight["default"].dtype != torch.float32
        kept = module.snnk_projection["default"]
        assert kept.dtype == torch.float32
        assert torch.equal(kept, expected)
        assert module(torch.randn(2, 5).to(module.base_layer.weight.dtype)).isfinite().all()
    assert layer(**form).to("meta").snnk_projection["default"].is_meta


def test_the_projection_follows_from_seed_and_module():
    first = draw(4, 7, 0, "block.dense", True)
    torch.manual_seed(5)
    assert torch.equal(draw(4, 7, 0, "_orig_mod.block.dense", True), first)
    for other in ((4, 7, 1, "block.dense", True), (4, 7, 0, "block.gate", True)):
        assert (draw(*other) - first).abs().max() > 0.1
    assert (draw(4, 7, 0, "block.dense", False) - first).abs().max() > 0.1


def test_half_precision_computes_in_float32():
    module = trained(layer())
    x = torch.randn(64, 5).bfloat16()
    half = layer(dtype=torch.bfloat16)
    half.load_state_dict(module.state_dict())
    exact = half.double()(x.double())
    half = half.bfloat16()
    y = half(x)
    # the base layer and the output are rounded, nothing else is
    base = half.base_layer(x)
    reference = base.float() + half._change("default", x, base)
    assert half._change("default", x, base).dtype == torch.float32
    assert torch.equal(y, reference.bfloat16())
    torch.testing.assert_close(y.double(), exact, atol=0.2, rtol=0.05)


def test_adapters_act_in_their_order():
    module = trained(layer(placement="serial"))
    module.update_layer("second", SnnkConfig(num_features=6, placement="parallel"), "block.dense")
    module.update_layer("third", SnnkConfig(num_features=2, kernel="linear"), "block.dense")
    module.set_adapter(["default", "second", "third"])
    trained(module)
    x = torch.randn(2, 5)
    y = module.base_layer(x)
    for name in ("default", "second", "third"):
        y = y + module._change(name, x, y)
    torch.testing.assert_close(module(x), y)
    module.set_adapter(["third", "second", "default"])
    assert (module(x) - y).abs().max() > 1e-3
    module.delete_adapter("second")
    assert module.active_adapters == ["third", "default"]
    for name in (*module.adapter_layer_names, *module.other_param_names):
        assert "second" not in getattr(module, name)


@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(5, 7),
        nn.Conv2d(5, 7, 1),
        nn.LayerNorm(5),
        nn.Bilinear(2, 3, 4),
        nn.MultiheadAttention(4, 2).out_proj,
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_layers_are_refused(module):
    with pytest.raises(TypeError, match=f"cannot adapt a {type(module).__name__}.*Conv1D"):
        SnnkAdapterLinear(module, "default", SnnkConfig(), "block")


def test_layers_that_are_no_linear_but_have_its_sizes():
    assert linear_sizes(Conv1D(7, 5)) == (5, 7)
    quantized = nn.Module()
    quantized.in_features, quantized.out_features = 5, 7
    assert linear_sizes(quantized) == (5, 7)


def test_on_top_of_another_tuner():
    model = get_peft_model(nn.Sequential(nn.Linear(5, 7)), LoraConfig(r=2, target_modules=["0"]))
    below = model.base_model.model[0]
    nn.init.normal_(below.lora_B["default"].weight)
    x = torch.randn(2, 5)
    module = layer(below)
    assert (module.in_features, module.out_features) == (5, 7)
    assert torch.equal(module(x), below(x))
    with pytest.raises(ValueError, match="adapters of another kind"):
        layer(below, kernel="linear").merge()


@forms
def test_compiled(form):
    module = trained(layer(**form))
    module.update_layer("other", SnnkConfig(num_features=2), "block.dense")
    x = torch.randn(3, 5)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    assert counter.frame_count == 1
    module.set_adapter("other")
    torch.testing.assert_close(compiled(x), module(x))


def test_a_copy_is_its_own():
    module = trained(layer())
    x = torch.randn(2, 5)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    twin.delete_adapter("default")
    assert "default" in module.snnk_projection
    assert repr(module).startswith("snnk.SnnkAdapterLinear")
