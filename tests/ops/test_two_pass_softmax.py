"""The compiled softmax against torch's in float64."""

import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd import forward_ad

from hf_softext.ops import two_pass_logsumexp, two_pass_softmax
from hf_softext.ops.build import COMPILERS

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler"
)
GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "two_pass_softmax.safetensors")
INF, NAN = torch.inf, torch.nan
# from so many columns on a row has several parts, and threads share it
LONG = 4 * 16384 + 1


def check(x: torch.Tensor, dim: int = -1) -> None:
    """Both functions, to a few roundings; where a probability is subnormal, to one of its steps."""
    y, total = two_pass_softmax(x, dim), two_pass_logsumexp(x, dim)
    expected = torch.softmax(x.double(), dim)
    assert y.dtype == total.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=2e-45, equal_nan=True)
    torch.testing.assert_close(
        total.double(), torch.logsumexp(x.double(), dim), rtol=1e-6, atol=1e-6, equal_nan=True
    )


def test_golden_rows():
    y, total = two_pass_softmax(GOLDEN["x"]), two_pass_logsumexp(GOLDEN["x"])
    torch.testing.assert_close(y.double(), GOLDEN["softmax64"], rtol=1e-6, atol=2e-45)
    torch.testing.assert_close(total.double(), GOLDEN["lse64"], rtol=1e-6, atol=0)


def test_every_length_of_the_last_vectors():
    for columns in range(1, 201):
        check(torch.randn(3, columns) * 5)


@pytest.mark.parametrize("shape", [(2, LONG), (1, 5 * 16384), (65, LONG), (3, 16384), (2, 3, 257)])
@pytest.mark.parametrize("scale", [1.0, 30.0, 500.0, 1e4, 1e30])
def test_sizes_and_magnitudes(shape, scale):
    check(torch.randn(shape) * scale)


def test_the_edges_of_the_range_without_a_maximum():
    # both sides of 2048, and rows that reach far below it
    for top in (2047.0, 2048.0, 2049.0, 2500.0, 5000.0):
        for sign in (1, -1):
            check(torch.randn(4, 333) + sign * top)
            check(torch.cat([torch.randn(4, 50), torch.full((4, 50), sign * top)], dim=1))


@pytest.mark.parametrize("columns", [1, 16, 17, 100, LONG])
@pytest.mark.parametrize("other", [0.0, 3e38, -3e38, 1e-40, -2048.0])
@pytest.mark.parametrize("special", [INF, -INF, NAN, 3.4e38, -3.4e38, 1e-45])
def test_special_values_anywhere(special, other, columns):
    x = torch.full((4, columns), other)
    x[0, 0] = x[1, -1] = x[2, columns // 2] = special
    x[3] = special
    check(x)


def test_nan_wins_over_infinity():
    for row in ([INF, NAN, 0.0], [NAN, INF, 0.0], [0.0, -INF, NAN], [INF, 0.0] + [-INF] * 40):
        check(torch.tensor([row]))


def test_hidden_entries_are_exactly_zero():
    x = torch.randn(3, 700)
    x[:, ::3] = -INF
    assert (two_pass_softmax(x)[:, ::3] == 0).all()
    check(x)


def test_subnormal_probabilities_are_rounded_once():
    x = torch.linspace(-104, 0, 3001)[None]
    y = two_pass_softmax(x)
    torch.testing.assert_close(y.double(), torch.softmax(x.double(), -1), rtol=4e-7, atol=1.41e-45)
    assert ((y > 0) & (y < torch.finfo(torch.float32).tiny)).sum() > 100


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 4), (0, 0)])
def test_nothing_to_do(shape):
    x = torch.empty(shape)
    assert two_pass_softmax(x).shape == shape
    assert torch.equal(two_pass_logsumexp(x), torch.logsumexp(x, -1))


def test_any_layout_and_dimension():
    x = torch.randn(6, 40, 70)
    for view in (x.transpose(0, 2), x[:, ::3], x[..., 5:], x[..., 3].T, x[:1].expand(4, 40, 70)):
        for dim in range(-view.ndim, view.ndim):
            check(view, dim)
    scalar = torch.tensor(3.0)
    assert two_pass_softmax(scalar) == 1
    assert two_pass_logsumexp(scalar, 0) == 3
    with pytest.raises(IndexError):
        two_pass_softmax(x, dim=3)


def test_output_written_past_the_caches_at_any_alignment():
    # 2^25 bytes, rows that begin anywhere in a vector
    x = torch.randn(128, 65_537)
    check(x)
    assert torch.equal(two_pass_softmax(x)[:3], two_pass_softmax(x[:3]))


def test_the_result_does_not_depend_on_threads_or_on_other_rows():
    x = torch.randn(100, LONG)
    one = two_pass_softmax(x), two_pass_logsumexp(x)
    torch.set_num_threads(2)
    try:
        assert torch.equal(two_pass_softmax(x), one[0])
        assert torch.equal(two_pass_logsumexp(x), one[1])
        # a row and a half for each thread, so that they share each row
        assert torch.equal(two_pass_softmax(x[:3]), one[0][:3])
        assert torch.equal(two_pass_logsumexp(x[:1]), one[1][:1])
    finally:
        torch.set_num_threads(1)


def test_shift_invariance_and_permutation():
    chance = random.Random(0)
    x = (torch.randn(5, 999) * 8).round(decimals=0) / 8
    y = two_pass_softmax(x)
    for _ in range(10):
        shift = chance.randrange(-1500, 1500)
        # two roundings apart from the exact one each
        torch.testing.assert_close(two_pass_softmax(x + shift), y, rtol=2e-6, atol=1e-38)
    order = torch.randperm(999)
    torch.testing.assert_close(two_pass_softmax(x[:, order]), y[:, order], rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("ours", [two_pass_softmax, two_pass_logsumexp])
def test_gradients_of_first_and_second_order(ours):
    theirs = {two_pass_softmax: torch.softmax, two_pass_logsumexp: torch.logsumexp}[ours]
    x = torch.randn(4, 63)
    results = []
    for function, dtype in ((ours, torch.float32), (theirs, torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        out = function(leaf, 0)
        weight = torch.linspace(-1, 2, out.numel(), dtype=dtype).view_as(out)
        (first,) = torch.autograd.grad((out * weight).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * leaf.detach()).sum(), leaf)
        results.append((first.double(), second.double()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("op", ["two_pass_softmax", "two_pass_logsumexp"])
def test_the_operator_is_registered_in_full(op):
    overload = getattr(torch.ops.softext, op).default
    for x in (
        torch.randn(4, 9, requires_grad=True),
        torch.randn(9, 4).T,
        torch.randn(7),
        torch.randn(2, 3, 5),
    ):
        torch.library.opcheck(overload, (x,))


def test_compiles_as_one_graph():
    def loss(x):
        return (two_pass_softmax(x * 2, 0) * x).sum() + two_pass_logsumexp(x).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-3, 3, 60).view(5, 12).requires_grad_()
        out = function(x)
        out.backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_what_it_does_not_do_names_the_way_out():
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        with pytest.raises(TypeError, match=rf"x is {dtype}.*use torch.softmax, or x.float"):
            two_pass_softmax(torch.zeros(2, 2, dtype=dtype))
    with pytest.raises(TypeError, match=r"use torch.logsumexp"):
        two_pass_logsumexp(torch.zeros(2, 2, dtype=torch.float16))


def test_meta_tensors_have_shapes():
    x = torch.empty(3, 5, device="meta")
    assert two_pass_softmax(x).shape == (3, 5)
    assert two_pass_logsumexp(x, 0).shape == (5,)


def test_precision_of_a_long_sum():
    # equal terms round the same way each time: one float32 sum drifts by 2e-3
    columns = 4_000_003
    x = torch.full((1, columns), 0.3)
    assert two_pass_softmax(x)[0, 0].item() == pytest.approx(1 / columns, rel=2e-6)
    assert two_pass_logsumexp(x).item() == pytest.approx(0.3 + math.log(columns), rel=2e-7)


# torch compiles the rules of forward mode with what it deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("function", [two_pass_softmax, two_pass_logsumexp])
def test_forward_mode_is_refused(function):
    x = torch.randn(3, 5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match=r"forward-mode derivative: use torch\."):
            function(dual)
    function(x)
