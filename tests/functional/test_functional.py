"""The pure functions: formulas, limits, and gradients where a naive formula has none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd import gradcheck

from hf_softext.functional import (
    log_softplus,
    log_stablemax,
    masked_softmax,
    sharpen,
    softplus_normalize,
    stablemax,
    stablemax_logits,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "stablemax.safetensors")
FULL = torch.ones(1, 1, dtype=torch.bool)
INF, NAN = float("inf"), float("nan")


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# masked_softmax


def test_masked_softmax_is_softmax_of_the_visible() -> None:
    logits = torch.randn(3, 5)
    keep = torch.tensor([[True, False, True, True, False]])
    weights = masked_softmax(logits, keep)
    torch.testing.assert_close(weights[:, keep[0]], torch.softmax(logits[:, keep[0]], -1))
    assert (weights[:, ~keep[0]] == 0).all()


@pytest.mark.parametrize("garbage", [INF, -INF, NAN, 3e38])
def test_masked_softmax_ignores_what_is_hidden(garbage: float) -> None:
    keep = torch.tensor([[True, True, False], [False, False, False]])
    logits = torch.tensor([[0.5, -1.0, garbage], [garbage, 0.0, 1.0]], requires_grad=True)
    weights = masked_softmax(logits, keep)
    (weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(weights[0, :2], torch.softmax(torch.tensor([0.5, -1.0]), -1))
    assert weights[0, 2] == 0
    assert (weights[1] == 0).all()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~keep] == 0).all()


def test_masked_softmax_gradient() -> None:
    keep = torch.tensor([[True, True, False, True], [False] * 4])
    assert gradcheck(lambda x: masked_softmax(x, keep), (double(2, 4),))


# softplus


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_softplus_over_the_whole_range(dtype: torch.dtype) -> None:
    # the seams of the branches are at -17, -37 and 40
    points = [-3e38, -1e4, -100, -38, -37, -36, -18, -17.001, -17, -16.999, -12, -9, -1]
    points += [0, 1, 20, 25, 39, 40, 41, 1e4, 3e38]
    scores = torch.tensor(points, dtype=dtype, requires_grad=True)
    got = log_softplus(scores)
    got.sum().backward()
    wide = scores.detach().double()
    expected = torch.where(wide < -30, wide - wide.exp() / 2, torch.log1p(wide.exp()).log())
    expected = torch.where(wide > 300, wide.log(), expected).to(dtype)
    slope = torch.where(wide < -30, 1.0, wide.sigmoid() / torch.log1p(wide.clamp(max=300).exp()))
    slope = torch.where(wide > 300, 1 / wide, slope).to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(scores.grad, slope, atol=tolerance, rtol=tolerance)


def test_log_softplus_gradient() -> None:
    scores = torch.tensor([-80.0, -36.0, -5, 0, 3, 39, 60], dtype=torch.float64, requires_grad=True)
    assert gradcheck(log_softplus, (scores,))


def test_softplus_normalize_is_the_ratio() -> None:
    scores = torch.randn(4, 6, dtype=torch.float64) * 5
    keep = torch.rand(4, 6) > 0.3
    keep[3] = False
    positive = torch.log1p(scores.exp()) * keep
    expected = (positive / positive.sum(-1, keepdim=True)).nan_to_num(0.0)
    torch.testing.assert_close(softplus_normalize(scores, keep), expected)
    # softplus(s) = 0 in float32 here, so the ratio is 0 / 0
    far = torch.tensor([[-200.0, -201.0]])
    torch.testing.assert_close(softplus_normalize(far, FULL), torch.softmax(far, -1))


# sharpen


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return softplus_normalize(torch.randn(*shape, dtype=dtype) * 3, FULL)


def test_sharpen_with_power_1_and_no_shift_changes_nothing() -> None:
    weights = rows(4, 9)
    torch.testing.assert_close(sharpen(weights, FULL.expand(4, 9), power=1, shift=0), weights)


@pytest.mark.parametrize("power", [1, 3, 15])
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_sharpen_is_the_formula(power: float, shift: float) -> None:
    weights, keep = rows(4, 9), FULL.expand(4, 9)
    powered = torch.relu(9 * weights - shift) ** power
    expected = powered / powered.sum(-1, keepdim=True)
    torch.testing.assert_close(sharpen(weights, keep, power=power, shift=shift), expected)


def test_sharpen_with_a_large_power_picks_the_largest() -> None:
    weights = rows(4, 9)
    sharpened = sharpen(weights, FULL.expand(4, 9), power=1000)
    torch.testing.assert_close(
        sharpened, torch.eye(9).double()[weights.argmax(-1)], atol=1e-6, rtol=0
    )


def test_sharpen_free_rows_count_what_is_visible() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    keep = torch.tensor([[True, True, True, False]])
    unshifted, shifted = (torch.relu(3 * weights - shift) ** 15 for shift in (0, 1))
    for free_rows, powered in ((3, unshifted), (2, shifted)):
        torch.testing.assert_close(
            sharpen(weights, keep, free_rows=free_rows), powered / powered.sum()
        )


def test_sharpen_where_the_power_overflows_and_underflows() -> None:
    count = 4096
    # one weight of 4095 times the mean, and a row barely above its mean: 4095^15 is beyond float32,
    # 1e-3^15 is below it
    peak = torch.full((count,), 1e-9)
    peak[7] = 1 - 1e-9 * (count - 1)
    flat = torch.full((count,), 1 / count)
    flat[7] *= 1.001
    weights = torch.stack([peak, flat / flat.sum()]).requires_grad_()
    sharpened = sharpen(weights, torch.ones(2, count, dtype=torch.bool))
    sharpened[:, 7].sum().backward()
    torch.testing.assert_close(sharpened.sum(-1), torch.ones(2))
    torch.testing.assert_close(sharpened[:, 7], torch.ones(2))
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [4, 7, 100, 4096])
def test_sharpen_of_equal_weights(count: int, dtype: torch.dtype) -> None:
    # 1/7 * 7 is not 1 in floating point; the rounding must not be taken for an order
    weights = softplus_normalize(torch.full((1, count), 0.3, dtype=dtype), FULL).requires_grad_()
    keep = FULL.expand(1, count)
    kept = sharpen(weights, keep)
    kept[0, 0].backward()
    assert torch.equal(kept, weights)
    assert weights.grad.isfinite().all()
    assert (sharpen(weights, keep, degenerate="zero") == 0).all()


def test_sharpen_with_nothing_visible() -> None:
    weights = torch.zeros(2, 5, requires_grad=True)
    sharpened = sharpen(weights, torch.zeros(2, 5, dtype=torch.bool))
    sharpened.sum().backward()
    assert (sharpened == 0).all()
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("power", [1, 3, 15])
def test_sharpened_softplus_gradient(power: float) -> None:
    keep = torch.rand(5, 8) > 0.2
    keep[4] = False
    scores = double(5, 8)
    assert gradcheck(lambda x: sharpen(softplus_normalize(x, keep), keep, power=power), (scores,))


def test_nan_stays_in_its_row() -> None:
    scores = torch.randn(3, 6)
    scores[1, 2] = NAN
    keep = torch.ones(3, 6, dtype=torch.bool)
    keep[2, 2] = False
    scores[2, 2] = NAN
    for weights in (
        softplus_normalize(scores, keep),
        sharpen(softplus_normalize(scores, keep), keep),
        masked_softmax(stablemax_logits(scores), keep),
    ):
        # a row that sees the NaN must say so; the two others do not see it
        assert weights[1].isnan().any()
        assert weights[[0, 2]].isfinite().all()


# stablemax


def test_stablemax_map_is_that_of_the_authors() -> None:
    x = GOLDEN["s_x"].clone().requires_grad_()
    mapped = stablemax_logits(x).exp()
    # exp(log(1e30)) has the rounding of an exponent of 69
    torch.testing.assert_close(mapped, GOLDEN["s_y"], atol=0, rtol=1e-13)
    mapped.sum().backward()
    torch.testing.assert_close(x.grad, GOLDEN["s_grad"], atol=0, rtol=1e-13)


def test_log_stablemax_is_that_of_the_authors() -> None:
    logits = GOLDEN["logits"].clone().requires_grad_()
    torch.testing.assert_close(
        log_stablemax(logits.double()), GOLDEN["log_probs"], atol=1e-13, rtol=0
    )
    loss = torch.nn.functional.nll_loss(log_stablemax(logits.double()), GOLDEN["labels"])
    torch.testing.assert_close(loss, GOLDEN["loss_mean"], atol=1e-13, rtol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad, GOLDEN["grad_logits"])


def test_stablemax_gradient_does_not_collapse() -> None:
    logits = GOLDEN["collapse_logits"].clone().requires_grad_()
    (-log_stablemax(logits)[0, 0]).backward()
    torch.testing.assert_close(logits.grad, GOLDEN["collapse_grad_sm"], atol=0, rtol=1e-4)


def test_stablemax_gradient() -> None:
    # 0 is where the branches meet, 1 is where the ratio form divides by 0
    points = torch.tensor(
        [[-3.0, -1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64
    )
    assert gradcheck(stablemax, (points.requires_grad_(),))
    assert gradcheck(lambda x: log_stablemax(x, dim=0), (points,))
    at_zero = torch.zeros(1, requires_grad=True)
    stablemax_logits(at_zero).backward()
    assert at_zero.grad == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_stablemax_at_the_extremes(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    logits = torch.tensor([[largest, -largest, 0.0, 1.0, -1.0]], dtype=dtype, requires_grad=True)
    probabilities = stablemax(logits)
    probabilities[0, 0].backward()
    assert probabilities.dtype == dtype
    torch.testing.assert_close(probabilities.sum().float(), torch.tensor(1.0), atol=1e-2, rtol=0)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stablemax_of_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    logits = (torch.randn(8, 50) * 20).to(dtype)
    assert torch.equal(stablemax(logits, dim=0), stablemax(logits.float(), dim=0).to(dtype))
    assert torch.equal(log_stablemax(logits), log_stablemax(logits.float()).to(dtype))


def test_stablemax_of_infinities_and_nan() -> None:
    logits = torch.tensor([-INF, 0.0, 1.0], requires_grad=True)
    probabilities = stablemax(logits)
    torch.testing.assert_close(probabilities, torch.tensor([0.0, 1 / 3, 2 / 3]))
    probabilities[1].backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0] == 0
    assert stablemax(torch.tensor([INF, 0.0])).isnan().all()
    assert stablemax(torch.tensor([NAN, 0.0])).isnan().all()
