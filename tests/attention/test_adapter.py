"""The adapter and the methods in it, called as transformers calls them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.parameters import Number
from hf_softext.catalog import find, methods
from hf_softext.functional import masked_softmax
from tests.cases import CASES, NAMES, Case, reference

COSINE = [case.name for case in CASES if case.cosine]
every_method = pytest.mark.parametrize("name", NAMES)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def method(name: str) -> AttentionMethod:
    return find(name, "attention").load()


def module(
    name: str = "", training: bool = False, is_causal: bool | None = None, **parameters: Any
) -> Any:
    config = SimpleNamespace(is_decoder=False)
    if parameters:
        config.softext = {"attention": name, **parameters}
    found = SimpleNamespace(training=training, config=config)
    if is_causal is not None:
        found.is_causal = is_causal
    return found


def call(name: str, module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Output and weights; the output that comes without the weights must be the same."""
    found = method(name)
    out, weights = found.forward(module, *args, output_attentions=True, **kwargs)
    if not (module.training and kwargs.get("dropout")):
        lean, nothing = found.forward(module, *args, **kwargs)
        assert nothing is None
        assert lean.dtype == out.dtype
        assert lean.is_contiguous()
        tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(out.dtype, 1e-5)
        torch.testing.assert_close(lean, out, atol=tolerance, rtol=tolerance, equal_nan=True)
    return out, weights


def attend(name: str, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return call(name, module(), *args, **kwargs)


def tensors(
    heads: int = 4,
    groups: int = 2,
    queries: int = 7,
    keys: int = 7,
    dim: int = 6,
    value_dim: int = 5,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, heads, queries, dim), (2, groups, keys, dim), (2, groups, keys, value_dim))
    query, key, value = (torch.randn(shape) for shape in shapes)
    return query, key, value


def left_padded(queries: int, pad: int) -> Tensor:
    """Causal (2, 1, Q, Q); the first row has `pad` padding tokens, whose queries see nothing."""
    keep = torch.ones(queries, queries, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    keep[0, ..., :pad] = False
    return keep


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def test_every_method_has_a_case() -> None:
    assert sorted(NAMES) == sorted(row.name for row in methods("attention"))


@every_case
def test_case_states_the_defaults(case: Case) -> None:
    assert method(case.name).resolve({}) == {"scale": None, **case.defaults}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)],
    ids=str,
)
@pytest.mark.parametrize("other", [False, True], ids=["defaults", "other parameters"])
@every_case
def test_output_and_gradients_equal_the_reference(
    case: Case, other: bool, dtype: torch.dtype, tolerance: float
) -> None:
    parameters = case.other if other else {}
    # sizes that no block divides
    inputs = [tensor.to(dtype) for tensor in tensors(queries=63, keys=63, dim=60, value_dim=37)]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    wide = [tensor.double().requires_grad_() for tensor in inputs]
    keep = left_padded(63, 5)
    given = {"scaling": case.scaling}
    out, weights = call(case.name, module(case.name, **parameters), *ours, keep, **given)
    expected, expected_weights = reference(case, *wide, keep, **given, **parameters)
    upstream = torch.randn(out.shape).to(dtype)
    out.backward(upstream)
    expected.backward(upstream.double())

    assert out.shape == (2, 63, 4, 37)
    assert out.is_contiguous()
    assert out.dtype == weights.dtype == dtype
    assert relative_error(out, expected) < tolerance
    assert relative_error(weights, expected_weights) < tolerance
    for mine, theirs in zip(ours, wide, strict=True):
        assert mine.grad.dtype == dtype
        assert relative_error(mine.grad, theirs.grad) < tolerance


@every_case
def test_softcap_and_both_biases_equal_the_reference(case: Case) -> None:
    inputs = [tensor.double() for tensor in tensors()]
    keep = left_padded(7, 2)
    in_mask, position_bias = torch.randn(2, 1, 7, 7).double(), torch.randn(1, 4, 7, 7).double()
    mask = in_mask.masked_fill(~keep, torch.finfo(torch.float64).min)
    softcap = None if case.gaussian else 0.8
    got = attend(case.name, *inputs, mask, softcap=softcap, position_bias=position_bias)
    expected = reference(case, *inputs, keep, softcap=softcap, bias=in_mask + position_bias)
    torch.testing.assert_close(got, expected)
    if case.gaussian:
        with pytest.raises(NotImplementedError, match=r"cannot soft-cap \(softcap=0.8\)"):
            attend(case.name, *inputs, mask, softcap=0.8)


@every_method
def test_all_forms_of_a_mask_agree(name: str) -> None:
    inputs = tensors()
    causal = left_padded(7, 0)
    expected = attend(name, *inputs, causal)

    def additive(hidden: float) -> Tensor:
        return torch.zeros(causal.shape).masked_fill(~causal, hidden)

    # -100 is what some models write for "hidden": a slow-tailed weight would leak
    for hidden in (torch.finfo(torch.float32).min, -math.inf, -1e4, -100.0):
        assert torch.equal(attend(name, *inputs, additive(hidden))[1], expected[1])
    for same in (causal[:1], causal.expand(2, 4, 7, 7), causal[0, 0]):
        assert torch.equal(attend(name, *inputs, same)[1], expected[1])
    for by_default in ({"is_causal": True}, {"is_causal": True, "sliding_window": 3}):
        assert torch.equal(attend(name, *inputs, None, **by_default)[1], expected[1])
    half = [tensor.half() for tensor in inputs]
    lowest = additive(0.0).half().masked_fill(~causal, torch.finfo(torch.float16).min)
    assert torch.equal(attend(name, *half, lowest)[1], attend(name, *half, causal)[1])


@every_method
def test_what_a_missing_mask_means(name: str) -> None:
    query, key, value = tensors(queries=3, keys=7)
    everything = attend(name, query, key, value, torch.ones(2, 1, 3, 7, dtype=torch.bool))[1]
    first = attend(name, query, key, value, torch.ones(2, 1, 3, 7, dtype=torch.bool).tril())[1]
    assert torch.equal(call(name, module(), query, key, value, None)[1], everything)
    # query i sees keys 0 to i, also where the keys of a static cache are more than the queries
    assert torch.equal(call(name, module(is_causal=True), query, key, value, None)[1], first)
    decoder = module()
    decoder.config.is_decoder = True
    assert torch.equal(call(name, decoder, query, key, value, None)[1], first)
    # the argument wins over the module
    assert torch.equal(
        call(name, module(is_causal=True), query, key, value, None, is_causal=False)[1], everything
    )
    # a single query is a decoding step
    step = call(name, module(is_causal=True), query[:, :, -1:], key, value, None)[1]
    torch.testing.assert_close(step, everything[:, :, -1:])


@every_method
def test_row_without_visible_keys_is_zero_with_finite_gradients(name: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    out, weights = attend(name, *inputs, left_padded(7, 3))
    (out.square().sum() + weights.sum()).backward()
    assert (out[0, :3] == 0).all()
    assert (weights[0, :, :3] == 0).all()
    assert (out[0, 3:] != 0).any()
    for tensor in inputs:
        assert tensor.grad.isfinite().all()
    assert (inputs[0].grad[0, :, :3] == 0).all()
    assert (inputs[1].grad[0, :, :3] == 0).all()


@every_case
@pytest.mark.parametrize("seen", [1, 4])
def test_zero_vectors_have_finite_gradients(case: Case, seen: int) -> None:
    query, key, value = tensors(queries=4, keys=4)
    # all dot products of the first query are 0, and of the second key
    query[:, :, 0], key[:, :, 1] = 0.0, 0.0
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    keep = torch.arange(4)[None, None, None].expand(2, 1, 4, 4) < seen
    out, weights = attend(case.name, *inputs, keep)
    out.square().sum().backward()
    if case.gaussian:
        expected = reference(case, *inputs, keep)[1]
    else:
        expected = (keep / seen).expand(2, 4, 4, 4)
    torch.testing.assert_close(weights[:, :, 0], expected[:, :, 0])
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


@every_method
def test_hidden_key_has_no_influence(name: str) -> None:
    query, key, value = tensors()
    keep = left_padded(7, 3)
    before = attend(name, query, key, value, keep)
    key[0, :, :3], value[0, :, :3] = 1e4, -1e4
    assert torch.equal(attend(name, query, key, value, keep)[0], before[0])


@every_method
def test_order_of_keys_does_not_matter(name: str) -> None:
    query, key, value = (tensor.double() for tensor in tensors())
    order = torch.randperm(7)
    out, weights = attend(name, query, key, value, None)
    shuffled, shuffled_weights = attend(name, query, key[:, :, order], value[:, :, order], None)
    torch.testing.assert_close(shuffled, out)
    torch.testing.assert_close(shuffled_weights, weights[..., order])


@pytest.mark.parametrize("name", COSINE)
def test_cosine_scores_ignore_lengths(name: str) -> None:
    query, key, value = (tensor.double().requires_grad_() for tensor in tensors())
    out, _ = attend(name, query, key, value, None, scaling=1.0)
    torch.testing.assert_close(
        attend(name, query * 30, key * 0.01, value, None, scaling=5.0)[0], out
    )
    out.square().sum().backward()
    for tensor in (query, key):
        along = (tensor.grad * tensor).sum(-1)
        torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)


@every_method
def test_decoding_step_is_the_last_row(name: str) -> None:
    query, key, value = (tensor.double() for tensor in tensors())
    full = attend(name, query, key, value, left_padded(7, 2))
    step = attend(name, query[:, :, -1:], key, value, left_padded(7, 2)[:, :, -1:])
    torch.testing.assert_close(step[0], full[0][:, -1:])
    torch.testing.assert_close(step[1], full[1][:, :, -1:])


@every_method
def test_padded_equals_unpadded(name: str) -> None:
    query, key, value = (tensor.double() for tensor in tensors())
    padded = attend(name, query, key, value, left_padded(7, 3))[0]
    alone = attend(
        name, *(tensor[:1, :, 3:] for tensor in (query, key, value)), None, is_causal=True
    )[0]
    torch.testing.assert_close(padded[:1, 3:], alone)


@every_case
def test_nan_in_a_key_reaches_only_the_rows_that_see_it(case: Case) -> None:
    query, key, value = tensors()
    key[1, 0, 4] = math.nan
    out, _ = method(case.name).forward(module(), query, key, value, left_padded(7, 0))
    assert out[1, 4:, :2].isnan().all()
    assert out[0].isfinite().all()
    # a fused softmax adds the mask to the score
    assert case.gaussian or out[1, :4].isfinite().all()
    # the heads of the other group
    assert out[1, :, 2:].isfinite().all()


@every_method
@pytest.mark.parametrize("argument", ["s_aux", "sinks", "indices", "block_indices", "cache"])
def test_refuses_what_it_would_have_to_ignore(name: str, argument: str) -> None:
    inputs = tensors()
    with pytest.raises(NotImplementedError, match=f"`{argument}`"):
        attend(name, *inputs, None, **{argument: torch.zeros(4)})
    attend(name, *inputs, None, **{argument: None})


@every_method
@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.uint8])
def test_integer_mask_is_ambiguous(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"attention_mask of dtype .*int.* is ambiguous"):
        attend(name, *tensors(), torch.ones(2, 1, 7, 7, dtype=dtype))


@every_method
def test_batch_sizes_must_agree(name: str) -> None:
    query, key, value = tensors()
    with pytest.raises(ValueError, match="batch sizes 2, 1 and 2"):
        attend(name, query, key[:1], value, None)


@every_method
def test_autocast_does_not_reach_the_weights(name: str) -> None:
    inputs = tensors()
    expected = attend(name, *inputs, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        got = attend(name, *inputs, None)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@every_method
def test_dropout_only_in_training(name: str) -> None:
    query, key, value = tensors(queries=40, keys=40)
    expected = attend(name, query, key, value, None)
    assert torch.equal(attend(name, query, key, value, None, dropout=0.5)[0], expected[0])
    out, weights = call(name, module(training=True), query, key, value, None, dropout=0.5)
    kept = weights != 0
    # a weight is dropped or doubled, and the output is made of those
    torch.testing.assert_close(weights[kept], 2 * expected[1][kept])
    visible = (expected[1] != 0).sum()
    assert 0.45 < kept.sum() / visible < 0.55
    torch.testing.assert_close(out, (weights @ value.repeat_interleave(2, 1)).transpose(1, 2))


@every_method
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}], ids=str)
def test_empty(name: str, sizes: dict[str, int]) -> None:
    query, key, value = (
        tensor[: sizes.get("batch", 2)].requires_grad_()
        for tensor in tensors(queries=sizes.get("queries", 7))
    )
    out, _ = attend(name, query, key, value, None)
    out.sum().backward()
    assert out.shape == (query.shape[0], query.shape[2], 4, 5)


def test_head_dim_1() -> None:
    inputs = tensors(dim=1)
    for name in COSINE:
        with pytest.raises(ValueError, match="head dim 1"):
            attend(name, *inputs, None)
        weights = call(name, module(name, scale=2.0), *inputs, None)[1]
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
    attend("stablemax", *inputs, None)


def test_one_aligned_key_among_4096() -> None:
    # the power of the unsafe form overflows bf16, and float32 as well
    query, key, value = (torch.randn(1, 1, length, 64) for length in (3, 4096, 4096))
    key[0, 0, 1000] = 5 * query[0, 0, 1]
    inputs = [tensor.bfloat16().requires_grad_() for tensor in (query, key, value)]
    out, weights = attend("softplus_reweighted", *inputs, None)
    out.float().square().sum().backward()
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(1, 1, 3), atol=1e-2, rtol=0)
    assert weights[0, 0, 1, 1000] > 0.99
    torch.testing.assert_close(out[0, 1, 0], inputs[2][0, 0, 1000], atol=2e-2, rtol=2e-2)
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


def test_scaling_of_dot_products() -> None:
    inputs = tensors()
    default, none, half = (
        attend("stablemax", *inputs, None, scaling=s)[1] for s in (6**-0.5, None, 0.5)
    )
    torch.testing.assert_close(none, default)
    assert not torch.allclose(half, default)
    # the parameter wins over the model
    torch.testing.assert_close(
        call("stablemax", module("stablemax", scale=0.5), *inputs, None, scaling=9.0)[1], half
    )
    # 0 is a scaling too
    torch.testing.assert_close(
        attend("stablemax", *inputs, None, scaling=0.0)[1], torch.full((2, 4, 7, 7), 1 / 7)
    )


def test_softmax_through_the_adapter_is_sdpa() -> None:
    probe = AttentionMethod(
        "probe", masked_softmax, cosine=False, parameters={"scale": Number(None, 0, 9)}
    )
    query, key, value = tensors()
    keep = left_padded(7, 0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=keep, scale=0.3, enable_gqa=True
    )
    got = probe.forward(module(), query, key, value, keep, scaling=0.3)[0]
    torch.testing.assert_close(got, expected.transpose(1, 2))
