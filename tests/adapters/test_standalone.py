"""A linear layer with its activation, replaced; and the head."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

from hf_softext.adapters.snnk.head import CONFIG, WEIGHTS, SnnkHead
from hf_softext.adapters.snnk.standalone import SnnkLinear

GOLDEN = Path(__file__).parents[1] / "golden"
FUNCTIONS = {"cos": torch.cos, "sin": torch.sin, "linear": lambda z: z}


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def small_linear(width, outputs, bias=True):
    """Rows of length about 1, as the estimates need."""
    linear = nn.Linear(width, outputs, bias)
    with torch.no_grad():
        linear.weight.copy_(nn.functional.normalize(torch.randn(outputs, width), dim=-1))
    return linear


def test_it_is_the_authors_layer():
    given = load_file(GOLDEN / "snnk_relu_layer.safetensors")
    layer = SnnkLinear(8, 4, 6, bias=False)
    layer.features.projection.copy_(given["G"])
    layer.set_weights(given["W"])
    close(layer.weight, given["weights"])
    x = given["x"].requires_grad_()
    y = layer(x)
    close(y, given["y"])
    y.backward(given["upstream"])
    close(x.grad, given["grad_x"])
    close(layer.weight.grad, given["grad_weights"])
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


@pytest.mark.parametrize("kernel", ["cos", "sin"])
def test_cos_and_sin_are_estimated_with_the_bias(kernel):
    linear = small_linear(8, 5)
    x = torch.nn.functional.normalize(torch.randn(7, 8), dim=-1)
    exact = FUNCTIONS[kernel](linear(x))
    errors = []
    for size in (200, 20_000):
        made = [SnnkLinear.from_linear(linear, size, kernel, seed=seed)(x) for seed in range(5)]
        errors.append((torch.stack(made) - exact).square().mean().sqrt().item())
    assert errors[1] < 0.03
    # 1 / sqrt(R)
    assert 5 < errors[0] / errors[1] < 20


def test_rows_too_long_for_an_estimate_are_told():
    linear = small_linear(8, 5)
    with torch.no_grad():
        linear.weight[2] *= 3
    with pytest.warns(UserWarning, match="up to 3 long.*standard error"):
        SnnkLinear.from_linear(linear, 200, "cos")
    # exp(4.5) is below the root of 20,000, and with inputs of length 2 above
    SnnkLinear.from_linear(linear, 20_000, "sin")
    with pytest.warns(UserWarning, match="standard error"):
        SnnkLinear.from_linear(linear, 20_000, "sin", normalize=2.0)
    SnnkLinear.from_linear(linear, 200, "relu")


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_exact_where_the_projection_is(bias):
    linear = nn.Linear(8, 5, bias)
    made = SnnkLinear.from_linear(linear, 3 * (8 + bias), "linear", equal_norms=True)
    x = torch.randn(2, 7, 8)
    close(made(x), linear(x), 1e-5)


def test_the_bias_of_relu_is_one_more_input():
    linear = nn.Linear(8, 5)
    made = SnnkLinear.from_linear(linear, 200_000)
    x = torch.randn(4, 8)
    x1 = torch.cat((x, torch.ones(4, 1)), 1)
    w1 = torch.cat((linear.weight, linear.bias[:, None]), 1)
    lengths = x1.norm(dim=1)[:, None] * w1.norm(dim=1)
    angle = (x1 @ w1.T / lengths).acos()
    exact = lengths * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    close(made(x), exact, 0.02)


def test_normalized_inputs():
    linear = nn.Linear(8, 5)
    plain = SnnkLinear.from_linear(linear, 16)
    scaled = SnnkLinear.from_linear(linear, 16, normalize=3.0)
    x = torch.randn(4, 8)
    close(scaled(x), plain(3 * x / x.norm(dim=1, keepdim=True)))
    # a row of zeros has no direction, and stays one
    close(scaled(torch.zeros(1, 8)), plain(torch.zeros(1, 8)))


@pytest.mark.parametrize("kernel", ["relu", "linear", "cos", "sin"])
def test_gradients(kernel):
    layer = SnnkLinear(5, 3, 6, kernel, normalize="unit").double()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_projection_is_never_rounded(dtype):
    layer = SnnkLinear(8, 5, 6)
    before = layer.features.projection.clone()
    x = torch.randn(3, 8)
    rounded = x.to(dtype)
    layer.to(dtype)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.features.projection, before)
    y = layer(rounded)
    assert y.dtype == dtype
    # one rounding, of the sum
    wide = torch.promote_types(dtype, torch.float32)
    exact = layer.features(rounded) @ layer.weight.to(wide).T
    assert torch.equal(y, exact.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(rounded), y)


def test_the_state_is_whole_and_the_seed_is_all_it_needs():
    first, second = (SnnkLinear(8, 5, 6, seed=seed) for seed in (1, 2))
    x = torch.randn(3, 8)
    assert not torch.equal(first.features.projection, second.features.projection)
    assert {*first.state_dict()} == {"weight", "features.projection"}
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), first(x))
    # V starts at random, the projection does not
    assert torch.equal(SnnkLinear(8, 5, 6, seed=1).features.projection, first.features.projection)
    linear = nn.Linear(8, 5)
    made = SnnkLinear.from_linear(linear, 6)
    made(x)
    assert torch.equal(made.weight, SnnkLinear.from_linear(linear, 6).weight)
    with torch.device("meta"):
        assert SnnkLinear(8, 5, 6).weight.is_meta


@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 8), (2, 3, 8), (2, 3, 4, 8)])
def test_shapes_and_rows_that_are_not_numbers(shape):
    layer = SnnkLinear(8, 5, 6)
    x = torch.randn(shape)
    clean = layer(x)
    assert clean.shape == (*shape[:-1], 5)
    if len(shape) == 3:
        x[1, 2, 0] = torch.nan
        dirty = layer(x)
        assert dirty[1, 2].isnan().all()
        dirty[1, 2] = clean[1, 2]
        assert torch.equal(dirty, clean)


class Halved(nn.Linear):
    """Is a linear layer by its type only."""

    def forward(self, x):
        return super().forward(x) / 2


def test_mistakes():
    with pytest.raises(ValueError, match=r"kernel='rleu'.*Did you mean 'relu'"):
        SnnkLinear(8, 5, 6, "rleu")
    for size in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match="num_features="):
            SnnkLinear(8, 5, size)
    with pytest.raises(ValueError, match="multiple of 2"):
        SnnkLinear(8, 5, 7, "cos")
    for length in (0.0, -1.0, "three", True, math.nan):
        with pytest.raises(ValueError, match="normalize="):
            SnnkLinear(8, 5, 6, normalize=length)
    with pytest.raises(ValueError, match="equal_norms"):
        SnnkLinear(8, 5, 6, orthogonal=False, equal_norms=True)
    for size in (0, True):
        with pytest.raises(ValueError, match=f"out_features={size}"):
            SnnkLinear(8, size, 6)
    with pytest.raises(ValueError, match=r"seed=.*64 bits"):
        SnnkLinear(8, 5, 6, seed=2**64)
    with pytest.raises(ValueError, match="only kernel='relu' has one"):
        SnnkLinear(8, 5, 6, "cos", floor=-5.0)
    layer = SnnkLinear(8, 5, 6, bias=False)
    with pytest.raises(ValueError, match=r"shape \(2, 7\).*in_features=8"):
        layer(torch.randn(2, 7))
    with pytest.raises(ValueError, match=r"\(O, 8\) is needed"):
        layer.set_weights(torch.randn(5, 7))
    with pytest.raises(ValueError, match=r"\(5, 8\) is needed"):
        layer.set_weights(torch.randn(4, 8))
    with pytest.raises(ValueError, match="made with bias=False"):
        layer.set_weights(torch.randn(5, 8), torch.randn(5))
    with pytest.raises(TypeError, match="not a Conv1d"):
        SnnkLinear.from_linear(nn.Conv1d(2, 2, 1), 6)
    with pytest.raises(TypeError, match="not a Halved"):
        SnnkLinear.from_linear(Halved(2, 2), 6)


def bert(kind=hf.BertForSequenceClassification, config=hf.BertConfig):
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "vocab_size": 40, "num_labels": 3}
    return kind(config(**sizes, **more)).eval()


def test_a_pooler_is_replaced_and_the_model_runs_and_learns():
    model = bert()
    x = torch.randint(5, 40, (4, 6))
    model.bert.pooler.dense = SnnkLinear.from_linear(model.bert.pooler.dense, 8)
    model.bert.pooler.activation = nn.Identity()
    model(x, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert model.bert.pooler.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "config", "first"),
    [
        (hf.BertForSequenceClassification, hf.BertConfig, False),
        (hf.RobertaForSequenceClassification, hf.RobertaConfig, True),
    ],
)
def test_a_head_in_a_model_and_back_from_disk(kind, config, first, tmp_path):
    model = bert(kind, config)
    x = torch.randint(5, 40, (4, 6))
    model.classifier = SnnkHead(16, 3, 32, normalize=2.0, seed=5, dropout=0.5, first_token=first)
    model.eval()
    logits = model(x).logits
    assert logits.shape == (4, 3)
    model.classifier.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    other = bert(kind, config)
    other.classifier = SnnkHead.from_pretrained(tmp_path)
    assert torch.equal(other(x).logits, logits)
    assert other.classifier.config() == model.classifier.config()
    other.classifier = SnnkHead(16, 3, 32, normalize=2.0, first_token=first)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x).logits, logits)
    # dropout is of the features, in training
    model.classifier.train()
    assert not torch.equal(model(x).logits, logits)


def test_a_half_precision_head(tmp_path):
    head = SnnkHead(16, 3, 32).to(torch.bfloat16).eval()
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    assert head(x).dtype == torch.bfloat16
    head.save_pretrained(tmp_path)
    back = SnnkHead.from_pretrained(tmp_path)
    assert back.out.weight.dtype == torch.bfloat16
    assert torch.equal(back(x), head(x))


def test_what_a_saved_head_may_say(tmp_path):
    with pytest.raises(FileNotFoundError, match="no SnnkHead"):
        SnnkHead.from_pretrained(tmp_path)
    head = SnnkHead(16, 3, 32)
    head.save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    said = json.loads(path.read_text())
    for change, message in (
        ({"num_features": 10**9}, "holds another head"),
        ({"hidden": "16"}, "hidden='16'"),
        ({"seed": True}, "seed=True"),
        ({"torch_dtype": "x"}, "and nothing else"),
        ({"hidden": 17}, "holds another head"),
        ({"hidden": 10**9}, "holds another head"),
        ({"kernel": "exec"}, "kernel='exec'"),
    ):
        path.write_text(json.dumps({**said, **change}))
        with pytest.raises(ValueError, match=message):
            SnnkHead.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        SnnkHead.from_pretrained(tmp_path)
    path.write_text(json.dumps(said))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        SnnkHead.from_pretrained(tmp_path)


def test_mistakes_of_a_head():
    with pytest.raises(ValueError, match="num_labels=0"):
        SnnkHead(16, 0)
    with pytest.raises(ValueError, match="num_features=0"):
        SnnkHead(16, 3, 0)
    with pytest.raises(ValueError, match=r"dropout=1\.0"):
        SnnkHead(16, 3, 8, dropout=1.0)
    with pytest.raises(ValueError, match="first_token"):
        SnnkHead(16, 3, 8, first_token=True)(torch.randn(2, 16))
    with pytest.raises(ValueError, match="in_features=16"):
        SnnkHead(16, 3, 8)(torch.randn(2, 15))
