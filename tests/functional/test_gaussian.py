"""The Gaussian kernel and its attention through fused softmax, against the formula."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_softext.functional.gaussian import gaussian_attention, gaussian_kernel, gaussian_weights


def tensors(*sizes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value for 4 heads in 2 groups."""
    queries, keys, dim, value_dim = sizes
    shapes = ((2, 4, queries, dim), (2, 2, keys, dim), (2, 2, keys, value_dim))
    query, key, value = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return query, key, value


def direct(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor,
    bias: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """The sum over keys, from differences of vectors."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    distance = (query[:, :, :, None] - key[:, :, None]).square().sum(-1)
    exponent = -0.5 * distance + (0.0 if bias is None else bias)
    weights = torch.exp(exponent) * keep
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.einsum("bhqk,bhkd->bqhd", weights, value)


def causal(queries: int, keys: int) -> Tensor:
    return torch.ones(1, 1, queries, keys, dtype=torch.bool).tril()


MASKS: dict[str, Any] = {
    "none": lambda q, k: {},
    "causal": lambda q, k: {"causal": True},
    "rows that see nothing": lambda q, k: {"keep": causal(q, k).tril(-3)},
    "two dimensions": lambda q, k: {"keep": causal(q, k)[0, 0]},
    "one for all queries": lambda q, k: {"keep": (torch.arange(k) < k - 2)[None, None, None]},
    "bias": lambda q, k: {"bias": torch.randn(1, 4, q, k).double()},
    "bias and mask": lambda q, k: {
        "bias": torch.randn(2, 1, q, k).double(),
        "keep": causal(q, k).expand(2, 4, q, k),
    },
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "sizes", [(63, 63, 60, 37), (7, 19, 5, 9), (19, 7, 8, 8), (1, 6, 3, 1)], ids=str
)
@pytest.mark.parametrize("mask", MASKS)
def test_output_and_gradients_are_the_formula(mask: str, sizes: tuple, normalize: bool) -> None:
    queries, keys = sizes[:2]
    inputs = [tensor.mul_(0.4).requires_grad_() for tensor in tensors(*sizes)]
    given = MASKS[mask](queries, keys)
    keep = given.get("keep", torch.ones(1, dtype=torch.bool))
    keep = causal(queries, keys) if given.get("causal") else keep
    got = gaussian_attention(*inputs, **given, normalize=normalize)
    expected = direct(*inputs, keep, given.get("bias"), normalize)
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad(x, inputs, upstream) for x in (got, expected))
    torch.testing.assert_close(ours, theirs)
    weights = gaussian_weights(
        inputs[0],
        inputs[1].repeat_interleave(2, 1),
        keep.expand(2, 4, queries, keys),
        given.get("bias"),
        normalize,
    )
    product = torch.matmul(weights, inputs[2].repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(product, expected)
    assert (weights == 0)[~keep.expand_as(weights)].all()


def test_row_without_keys_is_exactly_zero_with_finite_gradients() -> None:
    for normalize in (False, True):
        inputs = [tensor.float().requires_grad_() for tensor in tensors(6, 6, 4, 4)]
        output = gaussian_attention(*inputs, keep=causal(6, 6).tril(-2), normalize=normalize)
        output.square().sum().backward()
        assert (output[:, :2] == 0).all()
        assert (output[:, 2:] != 0).any()
        assert all(tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize("normalize", [False, True])
def test_causal_with_a_bias_of_any_shape(normalize: bool) -> None:
    inputs = tensors(5, 7, 4, 3)
    for shape in ((1, 4, 5, 7), (2, 1, 5, 1), (5, 7)):
        bias = torch.randn(shape).double()
        ours = gaussian_attention(*inputs, causal=True, bias=bias, normalize=normalize)
        theirs = direct(*inputs, causal(5, 7), bias.expand(2, 4, 5, 7), normalize)
        torch.testing.assert_close(ours, theirs)


def test_gradient_of_a_bias() -> None:
    inputs, bias = tensors(5, 6, 4, 3), torch.randn(1, 4, 5, 6).double().requires_grad_()
    for normalize in (False, True):
        ours = gaussian_attention(*inputs, bias=bias, normalize=normalize)
        theirs = direct(*inputs, torch.ones(1, dtype=torch.bool), bias, normalize)
        upstream = torch.randn_like(ours)
        torch.testing.assert_close(
            *(torch.autograd.grad(x, bias, upstream) for x in (ours, theirs))
        )


def test_gradcheck() -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors(4, 4, 3, 2)]
    for normalize in (False, True):
        assert torch.autograd.gradcheck(
            lambda *x, n=normalize: gaussian_attention(*x, causal=True, normalize=n), inputs
        )
    assert torch.autograd.gradcheck(
        gaussian_kernel, [torch.randn(3, 4, 2).double().requires_grad_() for _ in range(2)]
    )


@pytest.mark.parametrize(("spread", "tolerance"), [(1.0, 3e-6), (10.0, 3e-4)])
def test_float32_with_4096_keys_and_large_norms(spread: float, tolerance: float) -> None:
    # keys near their queries, so that there is something to see among squared norms up to 1,500
    query = torch.randn(1, 1, 512, 64).double() * spread / 64**0.25
    far = torch.randn(1, 1, 4096 - 512, 64).double() * spread / 64**0.25
    key = torch.cat([query + 0.1 * torch.randn_like(query), far], 2)
    value = torch.randn(1, 1, 4096, 64).double()
    weights = torch.exp(-0.5 * torch.cdist(query, key).square())
    for normalize, limit in ((False, tolerance), (True, 3e-6)):
        shares = weights / weights.sum(-1, keepdim=True) if normalize else weights
        expected = torch.matmul(shares, value).transpose(1, 2)
        got = gaussian_attention(
            query.float(), key.float(), value.float(), normalize=normalize
        ).double()
        assert (got - expected).norm() / expected.norm() < limit


def test_memory_does_not_hold_the_matrix() -> None:
    # the fused kernel is what keeps memory linear; with masks, without, causal, grouped heads
    query, key, value = tensors(9, 9, 60, 37, dtype=torch.float32)
    for given in ({}, {"causal": True}, {"keep": causal(9, 9)}, {"keep": causal(9, 9)[0, 0]}):
        for normalize in (False, True):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as ran:
                gaussian_attention(query, key, value, **given, normalize=normalize)
            names = [event.key for event in ran.key_averages()]
            assert any("flash_attention_for_cpu" in name for name in names)
            assert not any("attention_math" in name for name in names)


@pytest.mark.parametrize("normalize", [False, True])
def test_dropout_drops_weights_and_nothing_else(normalize: bool) -> None:
    query, key, _ = tensors(3, 400, 4, 1)
    # one column a key, so that the output is the dropped matrix of weights
    value = torch.eye(400, dtype=torch.float64).expand(2, 2, 400, 400)
    whole = gaussian_attention(query, key, value, normalize=normalize)
    dropped = gaussian_attention(query, key, value, dropout=0.25, normalize=normalize)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
    assert 0.72 < kept.double().mean() < 0.78


def test_kernel_is_symmetric_and_at_most_1() -> None:
    # float32 distances of equal vectors come out below 0 now and then
    x = 30 * torch.randn(200, 64)
    kernel = gaussian_kernel(x, x)
    assert kernel.max() <= 1
    torch.testing.assert_close(kernel, kernel.T)
    wide = x.double()[:20] / 30
    torch.testing.assert_close(
        gaussian_kernel(wide, wide), torch.exp(-0.5 * torch.cdist(wide, wide).square())
    )
    torch.testing.assert_close(gaussian_kernel(wide, wide).diagonal(), torch.ones(20).double())
    assert gaussian_kernel(torch.full((1, 2), math.nan), x[:1, :2]).isnan().all()
