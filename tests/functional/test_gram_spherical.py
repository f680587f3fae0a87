"""Standardised outputs of a linear layer from its Gram matrix are those of its outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from hf_softext.functional import gram_standardized

ROWS, WIDTH, CLASSES = 63, 12, 101


def standardized_reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, eps: float = 1e-12
) -> Tensor:
    outputs = F.linear(hidden, weight, bias)
    centred = outputs - outputs.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1) + eps).sqrt()
    return centred.gather(1, labels[:, None])[:, 0] / scale


def layer(dtype: torch.dtype = torch.float64, shift: float = 0.0) -> list[Tensor]:
    hidden, weight, bias = torch.randn(ROWS, WIDTH), torch.randn(CLASSES, WIDTH), torch.randn(101)
    return [x.to(dtype).requires_grad_() for x in (hidden, weight + shift, bias)]


@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_outputs_standardised(with_bias):
    hidden, weight, bias = layer()
    labels = torch.randint(5, (ROWS,))
    bias = bias if with_bias else None
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    expected = standardized_reference(hidden, weight, labels, bias)
    found = gram_standardized(hidden, weight, labels, bias)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(ROWS, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_differentiable_twice():
    labels = torch.tensor([0, 4, 4])
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 2), (5, 2), (5,))
    ]

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gram_standardized(hidden, weight, labels, bias)

    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_float32_where_the_mean_row_is_large(shift):
    inputs = layer(torch.float32, shift)
    labels = torch.randint(CLASSES, (ROWS,))
    exact = [x.detach().double() for x in inputs]
    expected = standardized_reference(*exact[:2], labels, exact[2])
    found = gram_standardized(*inputs[:2], labels, inputs[2])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_and_autocast_are_computed_in_float32():
    inputs = layer(torch.bfloat16)
    labels = torch.randint(CLASSES, (ROWS,))
    wide = [x.detach().float() for x in inputs]
    expected = gram_standardized(*wide[:2], labels, wide[2])
    found = gram_standardized(*inputs[:2], labels, inputs[2])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.autograd.grad(found.sum(), inputs[1])[0].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_standardized(*wide[:2], labels, wide[2]), expected)


def test_outputs_without_a_spread_are_finite():
    labels = torch.zeros(ROWS, dtype=torch.long)
    hidden, weight, _ = layer(torch.float32)
    # whole numbers, so that their mean is exact
    equal = weight.detach().round()[:1].repeat(CLASSES, 1).requires_grad_()
    for inputs in ((hidden, equal), (torch.zeros_like(hidden).requires_grad_(), weight)):
        found = gram_standardized(*inputs, labels)
        assert (found == 0).all()
        for gradient in torch.autograd.grad(found.sum(), inputs):
            assert gradient.isfinite().all()


def test_a_little_less_than_0_is_no_nan():
    # rows that the centred weight maps to 0, but for rounding
    direction = torch.randn(WIDTH)
    weight = torch.randn(CLASSES, WIDTH) * 1e3
    weight = weight - torch.outer(weight @ direction, direction) / direction.dot(direction)
    hidden = torch.randn(ROWS, 1) * direction
    found = gram_standardized(hidden, weight, torch.zeros(ROWS, dtype=torch.long))
    assert found.isfinite().all()


def test_no_tensor_has_the_size_of_the_outputs():
    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.largest = max(self.largest, tensor.numel())
            return out

    hidden, weight, bias = layer(torch.float32)
    labels = torch.randint(CLASSES, (ROWS,))
    with Sizes() as sizes:
        gram_standardized(hidden, weight, labels, bias).sum().backward()
    assert sizes.largest == CLASSES * (WIDTH + 1)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((3, 2), (5, 4), (3,), (5,)), "do not fit"),
        (((3, 2), (5, 2), (4,), (5,)), "a class for each row"),
        (((3, 2), (5, 2), (3,), (4,)), "bias"),
    ],
)
def test_shapes_that_do_not_fit(shapes, match):
    hidden, weight, labels, bias = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=match):
        gram_standardized(hidden, weight, labels.long(), bias)
