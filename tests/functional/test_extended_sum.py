"""Sums of exponentials in pieces, against torch.logsumexp of the whole."""

import functools
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.functional.extended_sum import ExtendedSum
from hf_softext.functional.linear_logsumexp import linear_logsumexp

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "two_pass_softmax.safetensors")
INF, NAN = torch.inf, torch.nan
# torch.compile makes an instance of every autograd.Function that it meets, and is warned by torch
DYNAMO_WARNS = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def in_pieces(x: torch.Tensor, sizes: list[int]) -> ExtendedSum:
    return functools.reduce(ExtendedSum.__add__, map(ExtendedSum.of, x.split(sizes, dim=-1)))


def test_golden_sums():
    total = ExtendedSum.of(GOLDEN["x"])
    torch.testing.assert_close(total.logsumexp().double(), GOLDEN["lse64"], rtol=1e-6, atol=0)
    # the same number as mantissa and power of 2; its last row's exponent fits no float32
    log = GOLDEN["sum_mantissa"].log() + GOLDEN["sum_exponent"] * torch.tensor(2.0).double().log()
    torch.testing.assert_close(total.logsumexp().double(), log, rtol=1e-6, atol=0)
    assert (total.mantissa >= 1).all()
    assert (total.mantissa <= 1000).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1e4, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_split_in_any_order_is_the_whole(scale, dtype):
    chance = random.Random(0)
    x = (torch.rand(5, 63, dtype=torch.float64) * 2 - 1).mul(scale).to(dtype)
    expected = torch.logsumexp(x.double(), -1)
    for _ in range(20):
        cuts = sorted(chance.sample(range(64), 4))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 63], strict=True)]
        parts = [ExtendedSum.of(part) for part in x.split(sizes, dim=-1)]
        chance.shuffle(parts)
        folded = functools.reduce(ExtendedSum.__add__, parts)
        paired = (parts[0] + parts[1]) + ((parts[2] + parts[3]) + parts[4])
        stacked = ExtendedSum(
            torch.stack([part.mantissa for part in parts]),
            torch.stack([part.exponent for part in parts]),
        ).reduce(0)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-14
        for total in (folded, paired, stacked):
            assert torch.equal(total.exponent, x.amax(-1))
            torch.testing.assert_close(
                total.logsumexp().double(), expected, rtol=tolerance, atol=tolerance
            )


def test_addition_commutes_exactly_and_has_an_identity():
    a, b = ExtendedSum.of(torch.randn(7, 9) * 30), ExtendedSum.of(torch.randn(7, 4) * 30)
    nothing = ExtendedSum.zero((7,))
    for left, right in ((a + b, b + a), (a + nothing, a), (nothing + a, a)):
        assert torch.equal(left.mantissa, right.mantissa)
        assert torch.equal(left.exponent, right.exponent)
    assert (nothing.logsumexp() == -INF).all()
    assert ((nothing + nothing).mantissa == 0).all()


def test_the_mantissa_keeps_what_a_large_logsumexp_rounds_away():
    x = torch.randn(3, 1000) + 1e6
    total = in_pieces(x, [400, 600])
    probabilities = (x - total.exponent[:, None]).exp() / total.mantissa[:, None]
    torch.testing.assert_close(probabilities.double(), x.double().softmax(-1), rtol=1e-5, atol=0)
    # what subtracting the logarithm gives
    rough = (x - torch.logsumexp(x, -1, keepdim=True)).exp().double()
    assert (rough / x.double().softmax(-1) - 1).abs().max() > 1e-3


@pytest.mark.parametrize(
    "row",
    [
        [-INF, -INF, -INF, -INF],
        [-INF, -INF, 1.0, 2.0],
        [1.0, INF, 2.0, -INF],
        [INF, INF, -INF, -INF],
        [NAN, 1.0, 2.0, 3.0],
        [1.0, 2.0, INF, NAN],
        [-INF, NAN, -INF, -INF],
        [-3.4e38, -3.4e38, -3.4e38, -3.4e38],
        [3.4e38, -3.4e38, 3.4e38, -INF],
        [1e-40, -1e-40, 0.0, -0.0],
    ],
)
def test_infinities_and_nan_as_torch_has_them(row):
    x = torch.tensor([row], requires_grad=True)
    softmax = torch.softmax(x.detach(), -1)
    for sizes in ([4], [2, 2], [1, 0, 3]):
        x.grad = None
        result = in_pieces(x, sizes).logsumexp()
        result.sum().backward()
        torch.testing.assert_close(result, torch.logsumexp(x, -1), equal_nan=True)
        if softmax.isnan().any():
            assert x.grad.isnan().any()
        else:
            # the gradient of torch.logsumexp is not this for the huge ones: 1 for each maximum
            torch.testing.assert_close(x.grad, softmax)


def test_an_empty_dimension_is_the_empty_sum():
    total = ExtendedSum.of(torch.randn(3, 0, 2), dim=1)
    assert total.mantissa.shape == (3, 2)
    assert (total.logsumexp() == -INF).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    x = torch.randn(4, 5000).to(dtype)
    total = in_pieces(x, [1000] * 5)
    assert total.mantissa.dtype == total.exponent.dtype == torch.float32
    torch.testing.assert_close(total.logsumexp(), torch.logsumexp(x.float(), -1))


def test_gradients_through_merges():
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def merged(x):
        return in_pieces(x, [2, 4, 3]).logsumexp()

    def along_the_middle(x):
        return ExtendedSum.of(x.view(3, 3, 3), dim=1).reduce(1).logsumexp()

    for function in (merged, along_the_middle):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)
    (grad,) = torch.autograd.grad(merged(x).sum(), x)
    torch.testing.assert_close(grad, x.softmax(-1))


def test_autograd_keeps_the_input_alone():
    kept = []
    x = torch.randn(8, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ExtendedSum.of(x).logsumexp()
    assert {t.data_ptr() for t in kept if t.numel() >= 1000} == {x.data_ptr()}


@DYNAMO_WARNS
def test_compiles_as_one_graph():
    def loss(x):
        return (ExtendedSum.zero((3,)).add(x[:, :5]) + ExtendedSum.of(x[:, 5:])).logsumexp().sum()

    x = torch.randn(3, 11, requires_grad=True)
    result = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    result.backward()
    torch.testing.assert_close(result, torch.logsumexp(x, -1).sum())
    torch.testing.assert_close(x.grad, x.softmax(-1))


# linear_logsumexp
@pytest.mark.parametrize("chunk", [1, 7, 31, 8192])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_logsumexp_has_the_gradients_of_the_whole(chunk, with_bias):
    shapes = [(2, 5, 12), (31, 12)] + [(31,)] * with_bias
    ours = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    plain = [t.detach().clone().requires_grad_() for t in ours]
    upstream = torch.randn(2, 5, dtype=torch.float64)
    result = linear_logsumexp(*ours, chunk=chunk)
    expected = torch.nn.functional.linear(*plain).logsumexp(-1)
    result.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(result, expected)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_linear_logsumexp_gives_the_gradients_asked_for():
    hidden, weight = torch.randn(4, 6), torch.randn(9, 6, requires_grad=True)
    linear_logsumexp(hidden, weight, chunk=4).sum().backward()
    torch.testing.assert_close(weight.grad, (hidden @ weight.T).softmax(-1).T @ hidden)


def test_linear_logsumexp_never_holds_the_logits():
    hidden = torch.randn(64, 8, requires_grad=True)
    weight = torch.randn(4096, 8, requires_grad=True)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(out)
            sizes.extend(t.numel() for t in leaves if isinstance(t, torch.Tensor))
            return out

    with Sizes():
        linear_logsumexp(hidden, weight, chunk=256).sum().backward()
    assert max(sizes) == weight.numel() < hidden.shape[0] * weight.shape[0]


def test_linear_logsumexp_in_half_precision_and_under_autocast():
    hidden, weight = torch.randn(16, 32), torch.randn(500, 32)
    exact = (hidden @ weight.T).logsumexp(-1)
    half = linear_logsumexp(hidden.bfloat16(), weight.bfloat16(), chunk=100)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.01, atol=0.05)
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear_logsumexp(hidden.bfloat16(), weight, chunk=100)
    mixed.sum().backward()
    assert torch.equal(mixed, half)
    assert weight.grad.dtype == torch.float32
    expected = (hidden @ weight.T).softmax(-1).T @ hidden
    torch.testing.assert_close(weight.grad, expected, rtol=0.1, atol=0.1)


@DYNAMO_WARNS
def test_linear_logsumexp_compiles_as_one_graph():
    hidden, weight = torch.randn(4, 6, requires_grad=True), torch.randn(9, 6)
    compiled = torch.compile(linear_logsumexp, fullgraph=True, backend="aot_eager")
    result = compiled(hidden, weight, chunk=4)
    result.sum().backward()
    torch.testing.assert_close(result, (hidden @ weight.T).logsumexp(-1))
    torch.testing.assert_close(hidden.grad, (hidden @ weight.T).softmax(-1) @ weight)


def test_linear_logsumexp_names_what_does_not_fit():
    hidden, weight = torch.randn(4, 6), torch.randn(9, 6)
    with pytest.raises(ValueError, match="chunk is 0"):
        linear_logsumexp(hidden, weight, chunk=0)
    with pytest.raises(ValueError, match=r"hidden \(4, 6\) and weight \(6, 9\) do not fit"):
        linear_logsumexp(hidden, weight.T)
    with pytest.raises(ValueError, match=r"bias \(6,\) does not fit"):
        linear_logsumexp(hidden, weight, torch.zeros(6))


def test_linear_logsumexp_keeps_float64_under_autocast():
    hidden, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_logsumexp(hidden, weight)
    torch.testing.assert_close(result, (hidden @ weight.T).logsumexp(-1))
