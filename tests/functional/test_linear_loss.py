"""The loss of a linear layer's outputs is that of the layer and the loss, however it is cut."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_softext.functional import linear_loss
from hf_softext.losses import SoftextLoss, get_loss

ROWS, WIDTH, CLASSES = 63, 60, 101
LOSSES = {
    "ce": {"label_smoothing": 0.1},
    "comp_sum": {"tau": 1.4},
    "stablemax_ce": {},
    "ldr_kl": {"lam": 0.7, "margin": 0.5},
    "spherical_z": {},
}
NAN = float("nan")


def cross_entropy() -> SoftextLoss:
    return get_loss("ce")


class Case:
    """Hidden states, a layer, labels and row weights, some of which are 0."""

    def __init__(self, dtype: torch.dtype = torch.float64, bias: bool = True):
        self.hidden = torch.randn(ROWS, WIDTH).to(dtype).requires_grad_()
        self.weight = torch.randn(CLASSES, WIDTH).mul(0.3).to(dtype).requires_grad_()
        self.bias = torch.randn(CLASSES).to(dtype).requires_grad_() if bias else None
        self.labels = torch.randint(CLASSES, (ROWS,))
        self.row_weight = torch.rand(ROWS)
        self.row_weight[::5] = 0

    def inputs(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def gradients(self, value: Tensor, upstream: float = 1.0) -> list[Tensor]:
        return list(torch.autograd.grad(value * upstream, self.inputs()))

    def ours(self, loss: SoftextLoss, in_place: bool = True, **settings) -> Tensor:
        return linear_loss(
            loss.per_sample,
            self.hidden,
            self.weight,
            self.labels,
            self.row_weight,
            bias=self.bias,
            gradient_=loss.gradient_ if in_place else None,
            **settings,
        )

    def reference(
        self, loss: SoftextLoss, scale: float = 1.0, softcap: float | None = None
    ) -> Tensor:
        logits = scale * torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = loss.per_sample(logits, self.labels)
        return (losses * self.row_weight.to(losses)).sum()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [4, 1e4])
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_the_derivative_in_place_is_that_of_autograd(name, double, size):
    dtype, tolerance = (torch.float64, 1e-12) if double else (torch.float32, 1e-5)
    loss = get_loss(name, **LOSSES[name])
    logits = (torch.randn(ROWS, CLASSES) * size).to(dtype).requires_grad_()
    labels, weight = torch.randint(CLASSES, (ROWS,)), torch.randn(ROWS).to(dtype)
    losses = loss.per_sample(logits, labels)
    (expected,) = torch.autograd.grad(losses, logits, weight)
    derivative = logits.detach().clone()
    found = loss.gradient_(derivative, labels, weight)
    torch.testing.assert_close(found, losses.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(derivative, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "autograd"])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_layer_and_the_loss(name, in_place, chunk):
    loss, case = get_loss(name, **LOSSES[name]), Case()
    expected = case.reference(loss, scale=0.7)
    found = case.ours(loss, in_place, scale=0.7, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(case.gradients(found, 3.0), case.gradients(expected, 3.0), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "autograd"])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_without_bias(name, in_place):
    loss, case = get_loss(name, **LOSSES[name]), Case(torch.float32, bias=False)
    expected, found = case.reference(loss), case.ours(loss, in_place, chunk=7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(case.gradients(found), case.gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_softcap_is_part_of_the_derivative():
    loss, case = cross_entropy(), Case()
    expected = case.reference(loss, scale=2.0, softcap=1.5)
    found = case.ours(loss, scale=2.0, softcap=1.5, chunk=10)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(case.gradients(found), case.gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, None])
def test_half_precision_is_rounded_once_at_the_end(dtype, chunk):
    loss, half, exact = cross_entropy(), Case(dtype), Case()
    for name in ("hidden", "weight", "bias"):
        setattr(exact, name, getattr(half, name).detach().double().requires_grad_())
    exact.labels, exact.row_weight = half.labels, half.row_weight
    truth, found = exact.reference(loss), half.ours(loss, chunk=chunk)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    naive = half.gradients(half.reference(loss))
    for ours, theirs, true in zip(
        half.gradients(found), naive, exact.gradients(truth), strict=True
    ):
        assert ours.dtype == dtype
        # half a unit in the last place, and a little for what is near the middle of two numbers
        torch.testing.assert_close(
            ours.double(), true, rtol=0.501 * torch.finfo(dtype).eps, atol=1e-6
        )
        assert (ours - true).norm() < (theirs - true).norm()


def test_float16_holds_derivatives_of_rows_that_count_little():
    loss, case = cross_entropy(), Case(torch.float16)
    expected = case.gradients(case.ours(loss), 2.0**16 * 1e-9)
    case.row_weight *= 1e-9
    scaled = case.gradients(case.ours(loss), 2.0**16)
    for ours, theirs in zip(scaled, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-7)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "autograd"])
def test_rows_of_weight_0_may_hold_anything(in_place):
    loss, case = cross_entropy(), Case()
    expected = case.reference(loss)
    wanted = case.gradients(expected)
    ignored = case.row_weight == 0
    case.labels[ignored] = -100
    with torch.no_grad():
        case.hidden[ignored] = NAN
    found = case.ours(loss, in_place, chunk=9)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(case.gradients(found), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nan_in_a_row_that_counts_shows():
    loss, case = cross_entropy(), Case()
    with torch.no_grad():
        case.hidden[1, 3] = NAN
    found = case.ours(loss, chunk=2)
    d_hidden, d_weight, _ = case.gradients(found)
    assert found.isnan()
    assert d_hidden[1].isnan().all()
    assert d_hidden[2:].isfinite().all()
    assert d_weight.isnan().any()


@pytest.mark.parametrize("rows", [0, ROWS], ids=["no row", "no row that counts"])
def test_nothing_is_0_with_gradients_of_0(rows):
    case = Case(torch.float32)
    case.hidden = case.hidden.detach()[:rows].requires_grad_()
    case.labels, case.row_weight = case.labels[:rows], torch.zeros(rows)
    found = case.ours(cross_entropy())
    assert found == 0
    for gradient, tensor in zip(case.gradients(found), case.inputs(), strict=True):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


def test_a_batch_of_sequences():
    loss, case = cross_entropy(), Case()
    expected = case.gradients(case.ours(loss))
    shaped = linear_loss(
        loss.per_sample,
        case.hidden.view(7, 9, WIDTH),
        case.weight,
        case.labels.view(7, 9),
        case.row_weight.view(7, 9),
        bias=case.bias,
    )
    for ours, theirs in zip(case.gradients(shaped), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def forbidden(*_: Tensor) -> Tensor:
    raise AssertionError("computed for nothing")


def products(run: Callable[[], object]) -> int:
    """How many matrix products a call makes."""

    class Count(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
            return func(*args, **(kwargs or {}))

    with Count() as count:
        run()
    return count.found


def test_nothing_is_computed_for_what_needs_no_gradient():
    loss, case = cross_entropy(), Case()

    def run() -> None:
        case.ours(loss).backward()

    assert products(run) == 3
    case.weight.requires_grad_(False)
    case.bias.requires_grad_(False)
    assert products(run) == 2
    expected = case.reference(loss)
    (frozen,) = torch.autograd.grad(expected, case.hidden, retain_graph=True)
    torch.testing.assert_close(case.hidden.grad, 2 * frozen)
    with torch.no_grad():
        found = linear_loss(
            loss.per_sample,
            case.hidden,
            case.weight,
            case.labels,
            case.row_weight,
            bias=case.bias,
            gradient_=forbidden,
        )
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "autograd"])
def test_no_tensor_is_larger_than_a_chunk_or_the_weight(in_place):
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    loss, case = cross_entropy(), Case(torch.float32)
    with Largest() as ours:
        case.ours(loss, in_place, chunk=3).backward()
    with Largest() as naive:
        case.reference(loss).backward()
    assert ours.size == CLASSES * WIDTH
    assert naive.size == ROWS * CLASSES


def test_autocast_reaches_neither_products_nor_loss():
    loss, case = cross_entropy(), Case(torch.float32)
    expected = case.ours(loss)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.ours(loss)
        # what a backbone under autocast hands to a head in float32
        half = case.hidden.detach().bfloat16()
        mixed = linear_loss(
            loss.per_sample, half, case.weight, case.labels, case.row_weight, bias=case.bias
        )
    assert found.dtype == mixed.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mixed, expected, rtol=1e-2, atol=0)
    for ours, theirs in zip(case.gradients(found), case.gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_pass_is_an_error_and_not_a_wrong_result():
    case = Case()
    found = case.ours(cross_entropy())
    case.gradients(found.clone())
    with pytest.raises(RuntimeError, match="second time"):
        case.gradients(found)
    found = case.ours(cross_entropy())
    torch.autograd.grad(found, case.inputs(), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found, case.inputs())
    found = case.ours(cross_entropy())
    (first, *_) = torch.autograd.grad(found * case.hidden.sum(), case.inputs(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden": torch.zeros(ROWS, 5)}, "5 columns"),
        ({"weight": torch.zeros(CLASSES, WIDTH).half()}, "float32 and weight torch.float16"),
        ({"bias": torch.zeros(3)}, r"bias \(3,\)"),
        ({"labels": torch.zeros(4).long()}, "63 rows have 4 labels"),
        ({"row_weight": torch.ones(ROWS, requires_grad=True)}, "row_weight wants a gradient"),
        ({"chunk": 0}, "chunk=0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_say_what_does_not_fit(change, match):
    given = {
        "hidden": torch.zeros(ROWS, WIDTH),
        "weight": torch.zeros(CLASSES, WIDTH),
        "labels": torch.zeros(ROWS).long(),
        "row_weight": torch.ones(ROWS),
    } | change
    with pytest.raises(ValueError, match=match):
        linear_loss(cross_entropy().per_sample, **given)


def test_the_loss_is_the_logarithm_of_the_classes_for_a_head_of_zeros():
    case = Case(torch.float32, bias=False)
    case.weight = torch.zeros_like(case.weight)
    case.row_weight = torch.full((ROWS,), 1 / ROWS)
    assert case.ours(cross_entropy()).item() == pytest.approx(math.log(CLASSES))
