"""The merged gradient against the authors' values, and what it promises."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.functional.gradient_alignment import align_gradients

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "dhkd_gradient_alignment.safetensors")
NAMES = sorted(name.removeprefix("g_ce.") for name in GOLDEN if name.startswith("g_ce."))


def dot(a, b):
    return sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)).item()


def test_equals_the_authors_code():
    ce = [GOLDEN[f"g_ce.{name}"] for name in NAMES]
    kd = [GOLDEN[f"g_kd.{name}"] for name in NAMES]
    assert len(NAMES) == 6
    assert dot(ce, kd) < 0
    found = align_gradients(kd, ce)
    for name, merged in zip(NAMES, found, strict=True):
        torch.testing.assert_close(merged, GOLDEN[f"merged.{name}"], rtol=1e-5, atol=1e-6)
    # the head that cross-entropy does not reach has no gradient of it in practice
    absent = [None if name.startswith("h2") else g for name, g in zip(NAMES, ce, strict=True)]
    for merged, expected in zip(align_gradients(kd, absent), found, strict=True):
        assert torch.equal(merged, expected)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_the_reference_keeps_its_whole_step(scale):
    kd = [torch.randn(5, 3), torch.randn(7)]
    ce = [scale * (-2 * kd[0] + torch.randn(5, 3)), scale * torch.randn(7)]
    merged = align_gradients(kd, ce)
    assert dot(merged, ce) >= dot(ce, ce) * (1 - 1e-5) - 1e-5 * abs(dot(kd, ce))
    rest = [m.double() - r.double() for m, r in zip(merged, ce, strict=True)]
    assert abs(dot(rest, ce)) <= 1e-5 * abs(dot(kd, ce))


def test_without_a_conflict_it_is_the_sum():
    kd = [torch.randn(4), None, torch.randn(2), None]
    ce = [kd[0] * 0.5, torch.randn(3), None, None]
    merged = align_gradients(kd, ce)
    assert torch.equal(merged[0], kd[0] + ce[0])
    assert torch.equal(merged[1], ce[1])
    assert torch.equal(merged[2], kd[2])
    assert merged[3] is None
    zeros = align_gradients(kd[:1], [torch.zeros(4)])
    assert torch.equal(zeros[0], kd[0])
    assert torch.equal(align_gradients(kd[:1], [None])[0], kd[0])


def test_it_is_one_vector_not_one_for_each_tensor():
    kd = [torch.tensor([-1.0]), torch.tensor([5.0])]
    ce = [torch.tensor([1.0]), torch.tensor([1.0])]
    merged = align_gradients(kd, ce)
    assert [g.item() for g in merged] == [0.0, 6.0]


def test_half_precision_and_errors():
    kd, ce = [torch.randn(64).bfloat16()], [torch.randn(64).bfloat16()]
    assert align_gradients(kd, ce)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="one is needed for each parameter"):
        align_gradients(kd, [])
    with pytest.raises(ValueError, match=r"gradient 0 is \(64,\)"):
        align_gradients(kd, [ce[0][:3]])
