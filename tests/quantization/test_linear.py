"""The quantized layer: its products, its gradients, its tensors through whatever moves them."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_softext.quantization.baq import dequantized_matmul, linear
from hf_softext.quantization.baq.dequantized_matmul import DequantizedMatmul
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.packed_matmul import available
from hf_softext.quantization.baq.weight import QuantizedWeight
from tests.quantization.test_packing import ANY, POWERS, random_codes

SHAPES = [(1, 1), (5, 9), (8, 3), (63, 60), (96, 300)]
needs_kernel = pytest.mark.skipif(not available(), reason="needs AVX2")


def random_weight(rows, columns, choice=POWERS, zero_point=False):
    codes, levels = random_codes(rows, columns, choice)
    ranges = (0.5 + torch.rand(rows, 1)).half()
    if zero_point:
        ranges = torch.cat([0.1 - ranges, ranges], 1)
    clip = (0.5 + torch.rand(9) / 2).half()
    return QuantizedWeight(codes, levels, ranges, clip, zero_point)


def random_layer(rows, columns, choice=POWERS, bias=True, zero_point=False, dtype=torch.float32):
    weight = random_weight(rows, columns, choice, zero_point)
    return BaqLinear.from_weight(weight, torch.randn(rows) if bias else None, dtype)


@pytest.fixture
def small_parts(monkeypatch):
    """So that layers of a few weights too are decoded part by part."""
    monkeypatch.setattr(dequantized_matmul, "_ON_CPU", 64)


@pytest.fixture
def packed_calls(monkeypatch):
    """How many rows each call of torch's kernel had."""
    calls = []
    packed_matmul = linear.packed_matmul

    def counted(x, packed, bias):
        calls.append(len(x))
        return packed_matmul(x, packed, bias)

    monkeypatch.setattr(linear, "packed_matmul", counted)
    return calls


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("choice", [POWERS, ANY, [1]])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.usefixtures("small_parts")
def test_weight_and_codes_are_what_was_given(rows, columns, choice, zero_point):
    weight = random_weight(rows, columns, choice, zero_point)
    layer = BaqLinear.from_weight(weight, None)
    assert torch.equal(layer.dequantize(), weight.dequantize())
    assert torch.equal(layer.dequantize(torch.bfloat16), weight.dequantize().bfloat16())
    found = layer.quantized()
    for name in ("codes", "levels", "ranges", "clip", "zero_point"):
        given, own = getattr(weight, name), getattr(found, name)
        assert torch.equal(own, given) if isinstance(given, torch.Tensor) else own == given


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("choice", [POWERS, ANY, [1]])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.usefixtures("small_parts")
def test_product(rows, columns, choice, zero_point):
    layer = random_layer(rows, columns, choice, zero_point=zero_point)
    dense = layer.dequantize()
    for batch in ((), (3,), (2, 7), (2, 3, 4), (0,), (2, 0)):
        x = torch.randn(*batch, columns)
        with torch.no_grad():
            found = layer(x)
        expected = F.linear(x, dense, layer.bias)
        assert found.shape == expected.shape
        if x.numel() // columns < 16:
            # inputs and sums are rounded to bfloat16, 8 bits
            scale = F.linear(x.abs(), dense.abs() + layer.ranges.view(torch.half).abs().max())
            assert ((found - expected).abs() <= scale / 128 + 1e-6).all()
        else:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_kernel
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_torchs_kernel_rounds_no_more_than_bfloat16(bits, packed_calls):
    layer = random_layer(256, 512, [2**bits], bias=False, dtype=torch.bfloat16)
    x = torch.randn(8, 512).bfloat16()
    exact = x.double() @ layer.dequantize(torch.float32).double().T
    plain = F.linear(x, layer.dequantize())
    with torch.no_grad():
        found = layer(x)
    assert packed_calls == [8]

    def error(y):
        return float((y.double() - exact).norm() / exact.norm())

    assert error(found) < 0.004
    assert error(found) < 2 * error(plain)


@needs_kernel
def test_which_way_a_product_is_computed(packed_calls, monkeypatch):
    layer = random_layer(24, 40)
    x = torch.randn(15, 40)
    layer(x)
    assert packed_calls == [15]
    with torch.no_grad():
        layer(torch.randn(16, 40))
        layer(torch.randn(4, 4, 40))
    layer(x.clone().requires_grad_())
    layer(x[:0])
    random_layer(24, 40, [1])(x)
    # as accelerate marks a layer whose tensors it moves
    layer._hf_hook = object()
    layer(x)
    del layer._hf_hook
    monkeypatch.setenv("SOFTEXT_PACKED", "0")
    random_layer(24, 40)(x)
    assert packed_calls == [15]
    layer(x)
    assert packed_calls == [15, 15]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_input_counts(dtype):
    layer = random_layer(24, 40, dtype=torch.bfloat16)
    for rows in (3, 20):
        x = torch.randn(rows, 40).to(dtype)
        with torch.no_grad():
            found = layer(x)
        assert found.dtype == dtype
        expected = F.linear(x.double(), layer.dequantize(torch.float64), layer.bias.double())
        torch.testing.assert_close(found.double(), expected, atol=0.1, rtol=0.02)


def test_autocast():
    layer = random_layer(24, 40)
    for rows in (3, 20):
        x = torch.randn(rows, 40, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
            with torch.no_grad():
                assert layer(x).dtype == torch.bfloat16
            expected = F.linear(x, layer.dequantize(), layer.bias)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0.02)
        grad = torch.randn_like(found)
        for_x = [torch.autograd.grad(y, x, grad)[0] for y in (found, expected)]
        assert for_x[0].dtype == torch.float32
        torch.testing.assert_close(*for_x, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("choice", [POWERS, ANY, [1]])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.usefixtures("small_parts")
def test_gradients(rows, columns, choice):
    layer = random_layer(rows, columns, choice)
    layer.bias.requires_grad_()
    dense = layer.dequantize()
    x = torch.randn(2, 9, columns, requires_grad=True)
    grad = torch.randn(2, 9, rows)
    wanted = torch.autograd.grad(F.linear(x, dense, layer.bias), (x, layer.bias), grad)
    found = torch.autograd.grad(layer(x), (x, layer.bias), grad)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_gradient_of_the_gradient():
    layer = random_layer(6, 10, [2, 4, 8])
    planes, ranges = layer.planes, layer.ranges.view(torch.float16)
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def product(x, bias):
        return DequantizedMatmul.apply(x, bias, planes, ranges, layer._layout).sin()

    assert torch.autograd.gradcheck(product, (x, bias))
    assert torch.autograd.gradgradcheck(product, (x, bias))


def kept_for_backward(run):
    shapes = []

    def keep(tensor):
        if tensor.is_floating_point():
            shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return shapes


def test_nothing_dense_is_kept_for_the_backward_pass():
    layer = random_layer(24, 40)
    x = torch.randn(20, 40, requires_grad=True)
    dense = layer.dequantize()
    assert (40, 24) in kept_for_backward(lambda: F.linear(x, dense))
    # the row ranges
    assert set(kept_for_backward(lambda: layer(x))) == {(24, 1)}


def test_input_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"input of shape \(2, 80\): the last dimension .* 40"):
        random_layer(24, 40)(torch.randn(2, 80))


@pytest.mark.parametrize("zero_point", [False, True])
def test_state_dict_is_the_format(zero_point):
    weight = random_weight(12, 20, zero_point=zero_point)
    layer = BaqLinear.from_weight(weight, torch.zeros(12), torch.bfloat16)
    with torch.no_grad():
        layer(torch.randn(2, 20))
    state = {name: (one.dtype, tuple(one.shape)) for name, one in layer.state_dict().items()}
    assert state == {
        "bias": (torch.bfloat16, (12,)),
        "planes": (torch.uint8, (len(layer.planes), 2)),
        "levels": (torch.uint8, (20,)),
        "ranges": (torch.int16, (12, 2 if zero_point else 1)),
        "clip": (torch.int16, (9,)),
    }
    assert torch.equal(layer.levels.short() + 1, weight.levels)
    assert torch.equal(layer.ranges.view(torch.float16), weight.ranges)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert not layer.bias.requires_grad


@pytest.mark.parametrize("assign", [False, True])
def test_loading_another_state(assign):
    first, second = (random_layer(12, 20, [4, 8]) for _ in range(2))
    while len(first.planes) != len(second.planes):
        second = random_layer(12, 20, [4, 8])
    x = torch.randn(2, 20)
    before = first(x)
    first.load_state_dict(second.state_dict(), assign=assign)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), before)
    many = torch.randn(20, 20)
    assert torch.equal(first(many), second(many))


def test_from_meta_to_memory():
    layer = random_layer(12, 20, zero_point=True)
    empty = BaqLinear(20, 12, len(layer.planes), zero_point=True, device="meta")
    assert empty.weight.shape == (12, 20)
    assert empty.weight.is_meta
    assert (empty.weight + 1).is_meta
    empty.check()
    for fill in (
        lambda: empty.load_state_dict(layer.state_dict(), assign=True),
        lambda: empty.to_empty(device="cpu").load_state_dict(layer.state_dict()),
    ):
        fill()
        empty.check()
        for rows in (2, 20):
            x = torch.randn(rows, 20)
            assert torch.equal(empty(x), layer(x))


def cast(kind):
    return lambda layer: layer.to(kind)


@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (cast(torch.bfloat16), torch.bfloat16),
        (cast("cpu"), torch.float32),
        (nn.Module.half, torch.float16),
        (nn.Module.double, torch.float64),
        (lambda layer: layer.type(torch.bfloat16), torch.bfloat16),
        (copy.deepcopy, torch.float32),
        (lambda layer: nn.Sequential(layer).half()[0], torch.float16),
    ],
)
def test_moves_leave_the_planes_alone(move, dtype):
    layer = random_layer(12, 20)
    x = torch.randn(3, 20)
    layer(x)
    moved = move(copy.deepcopy(layer))
    for name in ("planes", "levels", "ranges", "clip"):
        assert getattr(moved, name).dtype == getattr(layer, name).dtype
        assert torch.equal(getattr(moved, name), getattr(layer, name))
    assert moved.bias.dtype == moved.weight.dtype == moved.dequantize().dtype == dtype
    torch.testing.assert_close(moved(x), layer(x), atol=0.05, rtol=0.01)


def test_copies_have_memory_of_their_own_and_files_no_more_than_the_format():
    layer = random_layer(64, 512)
    x = torch.randn(2, 512)
    layer(x)
    twin = copy.deepcopy(layer)
    twin.planes.zero_()
    twin.check()
    assert not torch.equal(twin(x), layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    assert file.tell() < 1.2 * sum(tensor.nbytes for tensor in layer.state_dict().values()) + 8192
    again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("levels", lambda t: t.fill_(3), r"levels ask for 40 planes, but planes has \d+"),
        ("ranges", lambda t: t.view(torch.float16).fill_(float("inf")), "ranges holds inf or NaN"),
        ("clip", lambda t: t.view(torch.float16).fill_(float("nan")), "clip holds inf or NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_told(name, change, message):
    layer = random_layer(12, 20, [2, 16])
    change(getattr(layer, name))
    with pytest.raises(ValueError, match=message):
        layer.check()


@pytest.mark.parametrize("zero_point", [False, True])
def test_it_says_its_true_bits(zero_point):
    layer = random_layer(13, 20, [16], zero_point=zero_point)
    taken = 8 * sum(one.nbytes for name, one in layer.state_dict().items() if name != "bias")
    shown = f"BaqLinear(in_features=20, out_features=13, bias=True, bits={taken / 260:.4g})"
    assert repr(layer) == shown
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@needs_kernel
def test_packed_within_inference_mode_serves_outside():
    layer = random_layer(12, 20)
    x = torch.randn(2, 20)
    with torch.inference_mode():
        inside = layer(x)
    assert torch.equal(layer(x), inside)
    assert not any(one.is_inference() for one in layer._packed if one is not None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = random_layer(40, 64)
        self.second = random_layer(24, 40, ANY, bias=False, zero_point=True)

    def forward(self, x):
        # as T5 reads it
        x = x.to(self.first.weight.dtype)
        return self.second(F.silu(self.first(x)))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["decode", "prefill", "train"])
def test_compiles_to_one_graph(kind):
    torch.compiler.reset()
    net = Net().train(kind == "train")
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(2 if kind == "decode" else 20, 64, requires_grad=kind == "train")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [compiled(x), compiled(x)]
    expected = net(x)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    assert (twin.first._packed is not None) == (kind == "decode" and available())
    if kind == "train":
        grads = [torch.autograd.grad(y.sum(), x)[0] for y in (found[0], expected)]
        torch.testing.assert_close(*grads)


def test_compiled_it_sees_another_state():
    torch.compiler.reset()
    net = Net().eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 64)
    with torch.no_grad():
        compiled(x)
        other = Net()
        net.first, net.second = other.first, other.second
        assert torch.equal(compiled(x), other(x))
        net.to(torch.bfloat16)
        assert torch.equal(compiled(x), copy.deepcopy(net)(x))
