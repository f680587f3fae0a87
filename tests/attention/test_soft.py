"""SOFT and SOFT++ through landmarks: what is computed, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.attention.soft import SOFT, SOFT_NORM, GaussianAttention
from tests.soft import both, low_rank, module, tensors


def paper(
    query: Tensor, value: Tensor, groups: list[list[int]], norm: bool, scale: float | None = None
) -> Tensor:
    """The formula for one sequence (H, N, D), landmarks being means of `groups` of tokens."""
    t = query * math.sqrt(query.shape[-1] ** -0.5 if scale is None else scale)
    landmarks = torch.stack([t[:, group].mean(1) for group in groups], 1)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-0.5 * (x[:, :, None] - y[:, None]).square().sum(-1))

    p, a = kernel(t, landmarks), kernel(landmarks, landmarks)
    if norm:
        d = torch.diag_embed(a.sum(-1).rsqrt())
        inverse = d @ torch.linalg.inv(a) @ d
    else:
        inverse = torch.linalg.inv(a + 0.01 * torch.eye(len(groups)))
    return (p @ inverse @ (p.mT @ value)).transpose(0, 1)


RUNS = [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9, 10], [11, 12]]


@both
@pytest.mark.parametrize("scale", [None, 0.7])
def test_equals_the_formula_with_every_gradient(
    method: GaussianAttention, scale: float | None
) -> None:
    query, value = (tensor.requires_grad_() for tensor in tensors(13))
    given = {} if scale is None else {"scale": scale}
    # enough iterations for an inverse that is converged
    out = low_rank(method, query, value, landmarks=5, iterations=40, **given)
    expected = torch.stack(
        [paper(q, v, RUNS, method.normalize, scale) for q, v in zip(query, value, strict=True)]
    )
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-7)
    upstream = torch.randn_like(out)
    gradients = [torch.autograd.grad(x, (query, value), upstream) for x in (out, expected)]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)


@both
def test_gradcheck(method: GaussianAttention) -> None:
    query, value = (tensor[:1].requires_grad_() for tensor in tensors(7, dim=3, value_dim=2))
    assert torch.autograd.gradcheck(
        lambda q, v: low_rank(method, q, v, landmarks=3, iterations=40), (query, value)
    )


def test_cells_of_an_odd_grid_after_a_class_token() -> None:
    # 3 x 5 in cells of 2 x 2
    query, value = tensors(16, batch=1)
    groups = [[0], [1, 2, 6, 7], [3, 4, 8, 9], [5, 10], [11, 12], [13, 14], [15]]
    out = low_rank(SOFT_NORM, query, value, landmarks=6, grid=[3, 5], iterations=40)
    torch.testing.assert_close(
        out[0], paper(query[0], value[0], groups, norm=True), atol=1e-9, rtol=1e-7
    )


@both
def test_weights_make_the_output(method: GaussianAttention) -> None:
    query, value = tensors(13)
    keep = torch.arange(13) < torch.tensor([[[[13]]], [[[9]]]])
    for mask in (None, keep):
        found = method.forward(
            module(method, landmarks=5), query, query, value, mask, output_attentions=True
        )
        torch.testing.assert_close(found[0], (found[1] @ value).transpose(1, 2))
        torch.testing.assert_close(found[1], found[1].mT)
        assert torch.equal(found[0], low_rank(method, query, value, mask, landmarks=5))


@both
def test_a_row_does_not_depend_on_its_batch(method: GaussianAttention) -> None:
    query, value = tensors(20, batch=4)
    # kernels of very different row sums
    query *= torch.tensor([0.01, 0.3, 1.0, 30.0])[:, None, None, None]
    together = low_rank(method, query, value, landmarks=6)
    for row in range(4):
        alone = low_rank(method, query[row : row + 1], value[row : row + 1], landmarks=6)
        torch.testing.assert_close(alone[0], together[row], atol=1e-9, rtol=1e-9)


# one tensor as query and key


def test_tie() -> None:
    query, value = tensors(13)
    key = torch.randn_like(query)
    for method in (SOFT, SOFT_NORM):
        expected = low_rank(method, query, value, landmarks=5)
        copied = low_rank(method, query, value, key=query.clone(), landmarks=5)
        torch.testing.assert_close(copied, expected)
        ignored = low_rank(method, query, value, key=key, landmarks=5, tie="query")
        torch.testing.assert_close(ignored, expected)
        torch.testing.assert_close(
            low_rank(method, query, value, key=key, landmarks=5, tie="mean"),
            low_rank(method, 0.5 * (query + key), value, landmarks=5),
        )
        with pytest.raises(ValueError, match=r"they differ. Set tie='query'.*mode='exact'"):
            low_rank(method, query, value, key=key, landmarks=5)


def test_equal_query_and_key_share_the_gradient() -> None:
    # so that two projections that start equal stay so
    query, value = tensors(13)
    one, other, alone = (query.clone().requires_grad_() for _ in range(3))
    low_rank(SOFT, one, value, key=other, landmarks=5).square().sum().backward()
    low_rank(SOFT, alone, value, landmarks=5).square().sum().backward()
    assert torch.equal(one.grad, other.grad)
    torch.testing.assert_close(one.grad + other.grad, alone.grad)


def test_grouped_heads() -> None:
    query, _ = tensors(13)
    query = torch.cat([query, query[:, :1]], 1)
    key, value = torch.randn(2, 2, 13, 6).double(), torch.randn(2, 2, 13, 5).double()
    for tie, tokens in (
        ("query", query),
        ("mean", 0.5 * (query + key.repeat_interleave(2, 1))),
    ):
        torch.testing.assert_close(
            low_rank(SOFT, query, value, key=key, landmarks=5, tie=tie),
            low_rank(SOFT, tokens, value.repeat_interleave(2, 1), landmarks=5),
        )
    with pytest.raises(ValueError, match="they differ"):
        low_rank(SOFT, query, value, key=key, landmarks=5)


# no more tokens than landmarks


@both
@pytest.mark.parametrize("grid", [None, [3, 4]])
def test_short_sequence_is_exact_and_says_so_once(
    method: GaussianAttention, grid: list[int] | None
) -> None:
    query, value = tensors(12)
    given = {"landmarks": 12, "grid": grid}
    with pytest.warns(UserWarning, match="12 landmarks for 12 tokens, so .* exactly") as caught:
        first, second = (low_rank(method, query, value, **given) for _ in range(2))
    assert len(caught) == 1
    exact = module(method, mode="exact")
    torch.testing.assert_close(first, method.forward(exact, query, query, value, None)[0])
    assert torch.equal(first, second)
    # padding has no output here either
    keep = (torch.arange(12) < 7)[None, None, None]
    padded = low_rank(method, query, value, keep, **given)
    assert (padded[:, 7:] == 0).all()
    alone = method.forward(exact, *(x[:, :, :7] for x in (query, query, value)), None)[0]
    torch.testing.assert_close(padded[:, :7], alone)


def test_exact_rows_are_sdpa_with_a_bias_for_each_key() -> None:
    query, value = (tensor.float() for tensor in tensors(13))
    key = torch.randn_like(query)
    holder = module(SOFT_NORM, mode="exact", scale=0.3)
    bias = -0.15 * key.square().sum(-1)[:, :, None]
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.3)
    got = SOFT_NORM.forward(holder, query, key, value, None)[0]
    torch.testing.assert_close(got, expected.transpose(1, 2))


# precision and compilation


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(
    method: GaussianAttention, dtype: torch.dtype
) -> None:
    query, value = (tensor.to(dtype) for tensor in tensors(40))
    out = low_rank(method, query, value, landmarks=8)
    wide = low_rank(method, query.float(), value.float(), landmarks=8)
    assert out.dtype == dtype
    assert torch.equal(out, wide.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(low_rank(method, query.float(), value.float(), landmarks=8), wide)


@both
def test_compiles_in_one_graph_and_still_refuses(method: GaussianAttention) -> None:
    query, value = (tensor.float().requires_grad_() for tensor in tensors(13))
    keep = torch.arange(13) < torch.tensor([13, 9])[:, None, None, None]
    keep = keep.expand(2, 1, 13, 13).clone()

    holder = module(method, landmarks=5)

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return method.forward(holder, query, key, value, mask)[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    key = query.detach().clone()
    results = [f(query, key, value, keep) for f in (run, compiled)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.square().sum(), (query, value)) for x in results)
    )
    with pytest.raises(ValueError, match="queries see different keys"):
        compiled(query, key, value, keep.tril())
    with pytest.raises(ValueError, match="they differ"):
        compiled(query, key + 1, value, keep)
    torch._dynamo.reset()
