"""SOFT and SOFT++ through landmarks: padding is left out, everything else that hides is refused."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_softext.attention.soft import SOFT, SOFT_NORM, GaussianAttention
from tests.soft import both, low_rank, module, tensors


def padding_masks(valid: Tensor) -> dict[str, Tensor]:
    """Every form in which models state padding."""
    keep = valid[:, None, None, :]
    square = keep.expand(-1, 1, valid.shape[1], -1)
    return {
        "one row": keep,
        "expanded": square,
        "written out": square.clone(),
        "for each head": square.repeat(1, 3, 1, 1),
        "padding sees nothing": square & keep.mT,
        "additive": torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min),
    }


@both
@pytest.mark.parametrize("form", padding_masks(torch.ones(1, 1, dtype=torch.bool)))
def test_padded_equals_unpadded(method: GaussianAttention, form: str) -> None:
    query, value = tensors(17, batch=5)
    valid = torch.ones(5, 17, dtype=torch.bool)
    # left, right, in between; no more tokens than landmarks; none at all
    valid[1, :4], valid[2, 11:], valid[4] = False, False, False
    valid[3] = torch.tensor([i in (1, 4, 12, 15, 16) for i in range(17)])
    # not even a NaN gets out of padding
    query, value = (x.masked_fill(~valid[:, None, :, None], torch.nan) for x in (query, value))
    out = low_rank(method, query, value, padding_masks(valid)[form], landmarks=6)
    assert (out[~valid] == 0).all()
    for row, tokens in enumerate(valid[:4]):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*computed exactly")
            alone = low_rank(
                method,
                query[row : row + 1, :, tokens],
                value[row : row + 1, :, tokens],
                landmarks=6,
            )
        torch.testing.assert_close(out[row, tokens], alone[0])


@both
def test_gradients_of_padding_are_zero_and_finite(method: GaussianAttention) -> None:
    query, value = (tensor.float().requires_grad_() for tensor in tensors(17, batch=3))
    keep = torch.arange(17) < torch.tensor([17, 4, 0])[:, None, None, None]
    low_rank(method, query, value, keep, landmarks=6).square().sum().backward()
    for tensor in (query, value):
        assert tensor.grad.isfinite().all()
        assert (tensor.grad[0] != 0).any()
        assert (tensor.grad[1, :, 4:] == 0).all()
        assert (tensor.grad[2] == 0).all()


def test_padding_on_a_grid() -> None:
    # two columns of a 4 x 6 grid are padding: what is left is 4 x 4 in the same cells
    query, value = tensors(24, batch=1)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 4:] = False
    out = low_rank(
        SOFT_NORM, query, value, valid.flatten()[None, None, None], landmarks=6, grid=[4, 6]
    )
    query, value = (x[:, :, valid.flatten()] for x in (query, value))
    alone = low_rank(SOFT_NORM, query, value, landmarks=4, grid=[4, 4])
    torch.testing.assert_close(out[0, valid.flatten()], alone[0])
    assert (out[0, ~valid.flatten()] == 0).all()


def test_refuses_what_has_no_landmarks() -> None:
    query, value = tensors(13)
    square = torch.ones(2, 1, 13, 13, dtype=torch.bool)
    window = square.tril(2).triu(-2)
    packed = torch.block_diag(torch.ones(6, 6), torch.ones(7, 7)).bool()[None, None]
    one_head = square.repeat(1, 3, 1, 1)
    one_head[:, 1, :, 4] = False
    step = query[:, :, -1:]
    bias = torch.randn(2, 1, 13, 13)
    cases: list[tuple[str, Tensor, Tensor | None, dict[str, Any]]] = [
        ("a causal mask", query, None, {"is_causal": True}),
        ("queries see different keys", query, square.tril(), {}),
        ("queries see different keys", query, window, {}),
        ("queries see different keys", query, packed, {}),
        ("queries see different keys", query, one_head, {}),
        ("1 queries and 13 keys", step, None, {}),
        ("7 queries and 13 keys", query[:, :, :7], square[:, :, :7], {}),
        ("adds a bias", query, bias, {}),
        ("a position_bias", query, None, {"position_bias": bias}),
    ]
    for method in (SOFT, SOFT_NORM):
        for reason, asked, mask, given in cases:
            holder = module(method, landmarks=5, tie="query")
            with pytest.raises(ValueError, match=rf"{reason}.*Set mode='exact'"):
                method.forward(holder, asked, query, value, mask, **given)


def test_refuses_dropout_in_training_only() -> None:
    query, value = tensors(13)
    holder = module(SOFT, landmarks=5)
    SOFT.forward(holder, query, query, value, None, dropout=0.1)
    holder.training = True
    with pytest.raises(
        ValueError, match=r"no weights that dropout=0.1 could drop.* or mode='exact'"
    ):
        SOFT.forward(holder, query, query, value, None, dropout=0.1)


def test_refuses_a_negative_scale() -> None:
    query, value = tensors(13)
    for method in (SOFT, SOFT_NORM):
        with pytest.raises(ValueError, match=r"scale of 0 or more.*-0.5: give `scale`"):
            method.forward(module(method), query, query, value, None, scaling=-0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": [14]}, r"grid=\[14\] is not allowed: two whole numbers from 1"),
        ({"grid": [0, 3]}, r"grid=\[0, 3\]"),
        ({"grid": [2.0, 3]}, "grid="),
        ({"grid": [True, 3]}, "grid="),
        ({"grid": 14}, "grid=14"),
        ({"grid": "ab"}, "grid='ab'"),
        ({"landmarks": 0}, "landmarks=0 is not allowed: a whole number from 1"),
        ({"landmarks": 4.5}, "landmarks=4.5"),
        ({"iterations": 0}, "iterations=0"),
        ({"mode": "linear"}, "one of 'exact', 'low_rank'"),
        ({"tie": True}, "one of 'error', 'query', 'mean'"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"landmark": 3}, "Did you mean 'landmarks'"),
    ],
)
def test_parameters_out_of_range(given: dict[str, Any], message: str) -> None:
    for method in (SOFT, SOFT_NORM):
        with pytest.raises(ValueError, match=message):
            method.resolve(given)
    assert SOFT.resolve({"grid": (2, 3)})["grid"] == [2, 3]
