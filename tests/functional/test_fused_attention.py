"""FlexAttention against the chunked operator.

On CPU FlexAttention runs uncompiled; that it refuses gradients there is a check in front of code
that has them, which these tests step over. What the compiler makes of it is for the tests marked
`gpu`.
"""

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from hf_softext.functional import chunked_attention, fused_attention
from tests.functional.test_chunked_attention import MAPS, every_map, random_mask, tensors

fused = importlib.import_module("hf_softext.functional.fused_attention")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # that it would be faster compiled
            warnings.simplefilter("ignore")
            return flex.flex_attention(*args, **kwargs)

    monkeypatch.setattr(fused, "_flex", lambda: quiet)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    # it compiles the masks of each test anew
    torch._dynamo.reset()


def agree(row: str, inputs: list[Tensor], keep: Tensor, tolerance: float, **both: Any) -> None:
    leaves = [*inputs, *(x for x in both.values() if isinstance(x, Tensor))]
    name, _, options = MAPS[row]
    results = []
    for attention in (fused_attention, chunked_attention):
        output = attention(*inputs, row_map=name, options=options, keep=keep, **both)
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        upstream = upstream.to(output)
        results.append((output, *torch.autograd.grad(output, leaves, upstream)))
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("uncompiled")
@every_map
def test_output_and_gradients(row: str) -> None:
    # two blocks and a rest
    keep = random_mask(2, 1, 270, 150)
    agree(row, tensors(queries=270, keys=150, dtype=torch.float32), keep, 1e-4)


@pytest.mark.usefixtures("uncompiled")
@every_map
@pytest.mark.parametrize("shape", [(1, 4, 21, 23), (2, 1, 1, 23), (4, 21, 23)], ids=str)
def test_soft_cap_and_bias(row: str, shape: tuple[int, ...]) -> None:
    keep = torch.ones(21, 23, dtype=torch.bool).tril(2)[None, None]
    bias = torch.randn(shape).requires_grad_()
    agree(row, tensors(dtype=torch.float32), keep, 1e-4, bias=bias, softcap=0.7)


@pytest.mark.usefixtures("uncompiled")
def test_blocks_of_a_mask() -> None:
    keep = torch.ones(300, 300, dtype=torch.bool).tril()[None, None]
    mask = fused._block_mask(keep)
    # the diagonal is partial, what lies below it full, the rest empty; the last row of blocks has
    # 44 rows only, and so no full block
    assert mask.kv_num_blocks.tolist() == [[[1, 1, 3]]]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 0]]]
    assert [mask.kv_indices[0, 0, i, 0].item() for i in range(3)] == [0, 1, 0]


def test_nothing_is_fused_on_cpu() -> None:
    query = torch.zeros(1, 1, 4, 32)
    assert not fused.fuses(query, query)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_on_a_gpu(row: str, dtype: torch.dtype) -> None:
    sizes = ((2, 4, 333, 64), (2, 2, 333, 64), (2, 2, 333, 64))
    inputs = [torch.randn(size, device="cuda", dtype=dtype).requires_grad_() for size in sizes]
    keep = torch.ones(333, 333, dtype=torch.bool, device="cuda").tril().repeat(2, 1, 1, 1)
    keep[0, ..., :7] = False
    assert fused.fuses(inputs[0], inputs[2])
    name, _, options = MAPS[row]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = chunked_attention(*wide, row_map=name, options=options, keep=keep)
    output = fused_attention(*inputs, row_map=name, options=options, keep=keep)
    upstream = torch.randn_like(output)
    got = (output, *torch.autograd.grad(output, inputs, upstream))
    want = (expected, *torch.autograd.grad(expected, wide, upstream.double()))
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    for mine, theirs in zip(got, want, strict=True):
        assert ((mine.double() - theirs).norm() / theirs.norm()).item() < tolerance
