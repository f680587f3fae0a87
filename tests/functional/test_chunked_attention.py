"""The chunked operator against the same attention with the whole matrix written out."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hf_softext.functional import (
    chunked_attention,
    masked_softmax,
    sharpen,
    softplus_normalize,
    stablemax_logits,
)
from hf_softext.functional.row_maps import ROW_MAPS, RowMap

# the package exports the function under the same name
chunked = importlib.import_module("hf_softext.functional.chunked_attention")
SHARP = {"power": 15.0, "shift": 1.0, "free_rows": 3, "degenerate": "softplus"}
OTHER = {"power": 2.5, "shift": 0.5, "free_rows": 9, "degenerate": "zero"}


def sharpened(scores: Tensor, keep: Tensor, **options: Any) -> Tensor:
    return sharpen(softplus_normalize(scores, keep), keep, **options)


MAPS: dict[str, tuple[str, Callable[..., Tensor], dict[str, Any]]] = {
    "softmax": ("softmax", masked_softmax, {}),
    "softplus": ("softplus", softplus_normalize, {}),
    "stablemax": ("stablemax", lambda s, keep: masked_softmax(stablemax_logits(s), keep), {}),
    "sharpened": ("softplus_sharpened", sharpened, SHARP),
    "sharpened otherwise": ("softplus_sharpened", sharpened, OTHER),
}
every_map = pytest.mark.parametrize("row", MAPS)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny inputs are cut along the batch, the groups and the rows."""
    monkeypatch.setattr(chunked, "_SCORES_AT_ONCE", 600)
    monkeypatch.setattr(chunked, "_FEWEST_ROWS", 5)


def whole(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: str,
    keep: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`chunked_attention` by autograd over the whole matrix."""
    _, weights, options = MAPS[row]
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    return (weights(scores, keep, **options) @ value.repeat_interleave(groups, 1)).transpose(1, 2)


def tensors(
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    queries: int = 21,
    keys: int = 23,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    shapes = (
        (batch, heads, queries, 12),
        (batch, groups, keys, 12),
        (batch, groups, keys, 7),
    )
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()[None, None]


def random_mask(*shape: int) -> Tensor:
    keep = torch.rand(shape) > 0.4
    keep[..., 3, :] = False  # a query that sees nothing
    keep[..., :4] = False  # keys that nobody sees
    keep[..., -2:] = False
    return keep


def agree(row: str, inputs: list[Tensor], keep: Tensor, lean: dict[str, Any], **both: Any) -> None:
    """Outputs and every gradient, that of a bias included."""
    leaves = [*inputs, *(x for x in both.values() if isinstance(x, Tensor))]
    results = []
    for output in (
        chunked_attention(*inputs, row_map=MAPS[row][0], options=MAPS[row][2], **lean, **both),
        whole(*inputs, row, keep, **both),
    ):
        upstream = torch.randn(
            output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(3)
        )
        results.append((output, *torch.autograd.grad(output, leaves, upstream)))
    tolerance = 1e-9 if inputs[0].dtype == torch.float64 else 3e-5
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)


@every_map
def test_masks_of_every_shape(row: str) -> None:
    for shape in ((2, 4, 21, 23), (2, 1, 21, 23), (1, 4, 21, 23), (1, 1, 21, 23)):
        keep = random_mask(*shape)
        agree(row, tensors(), keep, {"keep": keep})
    padding = torch.ones(2, 1, 1, 23, dtype=torch.bool)
    padding[0, ..., :9] = False
    agree(row, tensors(), padding, {"keep": padding})
    two_dimensional = random_mask(21, 23)
    agree(row, tensors(), two_dimensional, {"keep": two_dimensional})


@every_map
@pytest.mark.parametrize(("queries", "keys"), [(21, 21), (21, 40), (40, 21), (1, 9)])
def test_without_a_mask(row: str, queries: int, keys: int) -> None:
    inputs = tensors(queries=queries, keys=keys)
    agree(row, inputs, torch.ones(1, 1, 1, keys, dtype=torch.bool), {})
    agree(row, inputs, causal(queries, keys), {"causal": True})


@every_map
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (6, 3), (1, 1)])
def test_groups_of_heads(row: str, heads: int, groups: int) -> None:
    agree(row, tensors(heads=heads, groups=groups, keys=21), causal(21, 21), {"causal": True})


@every_map
def test_soft_cap_and_bias(row: str) -> None:
    keep = random_mask(2, 1, 21, 23)
    shapes = ((1, 4, 21, 23), (2, 1, 1, 23), (4, 21, 23), (1, 1, 21, 1), (2, 4, 21, 23))
    for shape in shapes:
        bias = torch.randn(shape, dtype=torch.float64).requires_grad_()
        agree(row, tensors(), keep, {"keep": keep}, bias=bias, softcap=0.7)
        agree(row, tensors(), keep, {"keep": keep}, bias=bias)
    agree(row, tensors(), keep, {"keep": keep}, softcap=2.0)


@every_map
def test_float32(row: str) -> None:
    inputs = tensors(queries=63, keys=63, dtype=torch.float32)
    agree(row, inputs, causal(63, 63), {"causal": True})


@every_map
@pytest.mark.parametrize("factor", [0.0, 30.0, 1e4])
def test_scores_of_any_size(row: str, factor: float) -> None:
    # zero: rows without order; large: softplus underflows unless a row is shifted
    for dtype in (torch.float32, torch.float64):
        query, key, value = (x.detach().to(dtype) for x in tensors(queries=9, keys=9))
        with torch.no_grad():
            query[0], key[0] = query[0].abs() * factor, -key[0].abs()
            query[1] *= factor
        output = chunked_attention(
            query, key, value, row_map=MAPS[row][0], options=MAPS[row][2], causal=True
        )
        torch.testing.assert_close(
            output, whole(query, key, value, row, causal(9, 9)), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("row", ["softplus", "stablemax", "softmax", "sharpened otherwise"])
def test_low_rows_have_gradients(row: str) -> None:
    # every score lies far below 0, where softplus and its slope are the same tiny number
    inputs = [x.detach() for x in tensors(queries=6, keys=6)]
    with torch.no_grad():
        inputs[0], inputs[1] = inputs[0].abs() * 40, -inputs[1].abs()
    agree(row, [x.requires_grad_() for x in inputs], causal(6, 6), {"causal": True})


@every_map
def test_gradcheck(row: str) -> None:
    inputs = tensors(batch=1, heads=2, groups=1, queries=5, keys=6)
    keep = torch.ones(1, 1, 5, 6, dtype=torch.bool).tril(1)

    def function(*tensors: Tensor) -> Tensor:
        return chunked_attention(
            *tensors, row_map=MAPS[row][0], options=MAPS[row][2], keep=keep, softcap=3.0
        )

    torch.autograd.gradcheck(function, inputs)


@every_map
def test_operator_is_well_registered(row: str) -> None:
    name, _, options = MAPS[row]
    encoded = ROW_MAPS[name].encode(**options)
    keep = random_mask(2, 1, 21, 23)
    bias = torch.randn(1, 4, 21, 23, dtype=torch.float64).requires_grad_()
    arguments = (*tensors(), keep, bias, torch.tensor(7), name, encoded, False, 1.5, 0.2)
    torch.library.opcheck(torch.ops.softext.chunked_attention.default, arguments)


@every_map
def test_dropout_is_the_same_in_both_passes(row: str) -> None:
    inputs = tensors(queries=21, keys=21)

    def run(value: Tensor) -> Tensor:
        torch.manual_seed(5)
        return chunked_attention(
            *inputs[:2],
            value,
            row_map=MAPS[row][0],
            options=MAPS[row][2],
            causal=True,
            dropout=0.5,
        )

    # the output is linear in the values, so its gradient tells the weights that were used
    eye = torch.eye(21, dtype=torch.float64).expand(2, 2, 21, 21).clone().requires_grad_()
    weights = run(eye)
    plain = chunked_attention(
        *inputs[:2], eye, row_map=MAPS[row][0], options=MAPS[row][2], causal=True
    )
    kept = weights != 0
    torch.testing.assert_close(weights[kept], 2 * plain[kept])
    assert 0.35 < kept.sum() / (plain != 0).sum() < 0.65
    upstream = torch.randn_like(weights)
    (got,) = torch.autograd.grad(weights, eye, upstream)
    expected = torch.einsum("bqhk,bqhd->bhkd", weights, upstream)
    torch.testing.assert_close(got, expected.unflatten(1, (2, 2)).sum(2))
    # the gradients of query and key are those of the function that was computed
    direction = torch.randn_like(inputs[0])
    (grad,) = torch.autograd.grad(run(inputs[2]), inputs[0], upstream[..., :7])
    step = 1e-6
    with torch.no_grad():
        inputs[0].add_(step * direction)
        ahead = run(inputs[2])
        inputs[0].sub_(2 * step * direction)
        behind = run(inputs[2])
    slope = ((ahead - behind) * upstream[..., :7]).sum() / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=1e-6)
    assert (run(inputs[2]) == run(inputs[2])).all()


def test_dropout_of_everything_is_zero() -> None:
    output = chunked_attention(*tensors(), row_map="softmax", dropout=1.0)
    assert (output == 0).all()


@every_map
def test_size_of_the_tiles_does_not_matter(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(queries=40, keys=40)
    name, _, options = MAPS[row]
    few = chunked_attention(*inputs, row_map=name, options=options, causal=True)
    monkeypatch.setattr(chunked, "_SCORES_AT_ONCE", 2**20)
    monkeypatch.setattr(chunked, "_FEWEST_ROWS", 64)
    torch.testing.assert_close(
        few, chunked_attention(*inputs, row_map=name, options=options, causal=True)
    )


def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    monkeypatch.setattr(chunked, "_SCORES_AT_ONCE", 2**14)

    class Watched(RowMap):
        def weights(self, scores, count):
            nonlocal largest
            largest = max(largest, scores.numel())
            return ROW_MAPS["softmax"]().weights(scores, count)

    monkeypatch.setitem(ROW_MAPS, "watched", Watched)
    inputs = tensors(batch=3, queries=512, keys=512, dtype=torch.float32)
    chunked_attention(*inputs, row_map="watched").sum().backward()
    assert 0 < largest <= 2**14


@every_map
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"keys": 0}], ids=str)
def test_empty(row: str, sizes: dict[str, int]) -> None:
    inputs = tensors(**sizes)
    name, _, options = MAPS[row]
    output = chunked_attention(*inputs, row_map=name, options=options)
    output.sum().backward()
    assert (output == 0).all()
    assert all((x.grad == 0).all() for x in inputs)


# torch compiles the rules of forward mode with what it deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_mode_is_refused() -> None:
    query, key, value = (x.detach() for x in tensors())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="chunked_attention has no forward-mode"):
            chunked_attention(dual, key, value, row_map="softmax")
    chunked_attention(query, key, value, row_map="softmax")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row_map": "soft"}, "row_map='soft' must be one of softmax, softplus"),
        ({"dropout": -0.5}, "dropout=-0.5"),
        ({"query": torch.zeros(2, 4, 3, 12, dtype=torch.float16)}, "query is torch.float16"),
        ({"query": torch.zeros(2, 3, 3, 12)}, "3 heads, which is no multiple of the key's 2"),
    ],
)
def test_arguments_are_checked(changed: dict[str, Any], message: str) -> None:
    names = ("query", "key", "value")
    given = dict(zip(names, tensors(), strict=True)) | {"row_map": "softmax"} | changed
    with pytest.raises(ValueError, match=message):
        chunked_attention(**given)


def test_second_derivative_is_refused() -> None:
    inputs = tensors()
    output = chunked_attention(*inputs, row_map="softplus")
    (grad,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="softext"):
        grad.sum().backward()


@every_map
def test_no_denormal_numbers(row: str) -> None:
    # they would slow every product that follows
    rows = ROW_MAPS[MAPS[row][0]](*ROW_MAPS[MAPS[row][0]].encode(**MAPS[row][2]))
    scores = 6 * torch.randn(8, 500)
    weights, _ = rows.weights(scores, torch.full((1,), 500.0))
    smallest = weights[weights > 0].min()
    assert smallest >= torch.finfo(torch.float32).tiny
