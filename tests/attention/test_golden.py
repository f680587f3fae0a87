"""Vectors computed elsewhere in float64, through the function that transformers calls."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.parameters import Number
from hf_softext.attention.softplus import SOFTPLUS, SOFTPLUS_REWEIGHTED
from hf_softext.attention.stablemax import STABLEMAX
from hf_softext.functional import softplus_normalize

GOLDEN = Path(__file__).parents[1] / "golden"
SOFTPLUS_VECTORS = load_file(GOLDEN / "softplus_attention.safetensors")
PADDED_VECTORS = load_file(GOLDEN / "attention_gqa_leftpad.safetensors")

# weights that are not sharpened, of dot products
DOT_SOFTPLUS = AttentionMethod(
    "dot", softplus_normalize, cosine=False, parameters={"scale": Number(None, 0, 9)}
)
REWEIGHTED = {"attention": "softplus_reweighted", "degenerate": "zero"}
ROWS = {
    "lssa": (SOFTPLUS, {"attention": "softplus"}),
    "lssar_p3": (SOFTPLUS_REWEIGHTED, REWEIGHTED | {"power": 3}),
    "lssar_p15": (SOFTPLUS_REWEIGHTED, REWEIGHTED),
}


def module(block: dict | None = None) -> SimpleNamespace:
    return SimpleNamespace(training=False, config=SimpleNamespace(softext=block, is_decoder=False))


@pytest.mark.parametrize("whole", [True, False], ids=["with weights", "without"])
@pytest.mark.parametrize("mask", ["causal", "leftpad", "bidir", "window5"])
@pytest.mark.parametrize("row", ROWS)
def test_softplus_attention(row: str, mask: str, whole: bool) -> None:
    method, block = ROWS[row]
    q, k, v = (SOFTPLUS_VECTORS[name].clone().requires_grad_() for name in "qkv")
    keep = SOFTPLUS_VECTORS[f"mask_{mask}"][:, None]
    # a wrong `scaling` must not matter: cosines replace it
    out, weights = method.forward(
        module(block), q, k, v, keep, scaling=0.1, output_attentions=whole
    )
    out = out.transpose(1, 2)
    out.backward(SOFTPLUS_VECTORS["grad_out"])
    got = {"out": out, "grad_q": q.grad, "grad_k": k.grad, "grad_v": v.grad}
    if whole:
        got["weights"] = weights
        assert (weights[~keep.expand_as(weights)] == 0).all()
    expected = {key: SOFTPLUS_VECTORS[f"{mask}.{row}.{key}"] for key in got}
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(("method", "name"), [(STABLEMAX, "stablemax"), (DOT_SOFTPLUS, "softplus")])
def test_grouped_queries_with_left_padding(method: AttentionMethod, name: str) -> None:
    q, k, v, keep = (PADDED_VECTORS[key] for key in ("q", "k", "v", "mask_bool"))
    got = method.forward(
        module(), q, k, v, keep, scaling=q.shape[-1] ** -0.5, output_attentions=True
    )
    expected = (PADDED_VECTORS[f"{name}_out"], PADDED_VECTORS[f"{name}_weights"])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    # two padded keys on the left: nothing is visible to the first two queries
    assert (got[0][0, :2] == 0).all()
