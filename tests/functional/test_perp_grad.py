"""The projection against a plain reference, the authors' values, and at its edges."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.functional.perp_grad import project_out

GOLDEN = Path(__file__).parents[1] / "golden"
NAN, INF = float("nan"), float("inf")


def reference(gradient, weight, renorm=True):
    """The formula in float64, one vector."""
    g, w = gradient.double(), weight.double()
    rest = g - (w * g).sum() / (w * w).sum() * w
    return rest * g.norm() / rest.norm() if renorm else rest


def pair(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype), torch.randn(*shape).to(dtype)


@pytest.mark.parametrize("shape", [(63, 60), (7,), (5, 4, 3, 3), (2, 1)])
@pytest.mark.parametrize("renorm", [True, False])
def test_equals_the_formula(shape, renorm):
    gradient, weight = pair(*shape)
    expected = reference(gradient, weight, renorm)
    found = project_out(gradient, weight, renorm=renorm)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    rows = project_out(gradient, weight, renorm=renorm, granularity="row")
    if len(shape) == 1:
        assert torch.equal(rows, found)
    elif shape == (2, 1):
        assert torch.equal(rows, gradient)
    else:
        expected = torch.stack(
            [reference(g, w, renorm) for g, w in zip(gradient, weight, strict=True)]
        )
        torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", ["sgd", "sgdm", "adam"])
@pytest.mark.parametrize("step", range(3))
def test_equals_the_authors_code(base, step):
    golden = load_file(GOLDEN / f"perp_grad_{base}.safetensors")
    for name in "Wb":
        found = project_out(golden[f"g{name}{step}"], golden[f"{name}{step}"])
        torch.testing.assert_close(found, golden[f"pg{name}{step}"], rtol=1e-6, atol=1e-6)
    # theirs freezes a single number or blows its rounding up; ours leaves it alone
    single = golden[f"gc{step}"]
    assert torch.equal(project_out(single, golden[f"c{step}"]), single)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_is_perpendicular_keeps_the_length_and_does_nothing_twice(granularity):
    gradient, weight = pair(40, 30)
    # most of the gradient is along the weight: what is left must still be perpendicular
    gradient = 1e-4 * gradient + 3 * weight
    once = project_out(gradient, weight, granularity=granularity)
    dims = (0, 1) if granularity == "tensor" else (1,)
    length = (once.double() ** 2).sum(dims).sqrt()
    torch.testing.assert_close(length, (gradient.double() ** 2).sum(dims).sqrt(), rtol=1e-6, atol=0)
    along = (once.double() * weight.double()).sum(dims).abs()
    assert (along <= 1e-6 * length * (weight.double() ** 2).sum(dims).sqrt()).all()
    twice = project_out(once, weight, granularity=granularity)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [3.0, -0.37])
def test_rounding_is_not_blown_up(dtype, factor):
    weight = torch.randn(50, 20).to(dtype)
    gradient = (factor * weight.double()).to(dtype)
    assert torch.equal(project_out(gradient, weight), torch.zeros_like(weight))
    rows = project_out(gradient, weight, granularity="row")
    assert torch.equal(rows, torch.zeros_like(weight))


def test_min_residual_is_the_share_that_counts_as_nothing():
    weight = torch.tensor([1.0, 0.0])
    gradient = torch.tensor([1.0, 1e-3])
    assert project_out(gradient, weight, min_residual=2e-3).tolist() == [0, 0]
    kept = project_out(gradient, weight, min_residual=5e-4)
    torch.testing.assert_close(kept, torch.tensor([0.0, 1.0]), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_weight_leaves_the_gradient(dtype):
    gradient = torch.randn(9, 5).to(dtype)
    for granularity in ("tensor", "row"):
        found = project_out(gradient, torch.zeros_like(gradient), granularity=granularity)
        assert torch.equal(found, gradient)
        assert found.dtype == dtype


@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1e25])
def test_length_of_the_gradient_does_not_matter(scale):
    gradient, weight = pair(11, 6)
    found = project_out(scale * gradient, weight) / scale
    torch.testing.assert_close(found, project_out(gradient, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    gradient, weight = pair(33, 17, dtype=dtype)
    found = project_out(gradient, weight)
    assert torch.equal(found, project_out(gradient.float(), weight.float()).to(dtype))


def test_nan_and_infinity_show():
    for bad in (NAN, INF):
        gradient, weight = pair(4, 3)
        gradient[1, 1] = bad
        rows = project_out(gradient, weight, granularity="row")
        assert rows[1].isnan().all()
        assert rows[[0, 2, 3]].isfinite().all()
        assert project_out(gradient, weight).isnan().all()
        gradient, weight = pair(4, 3)
        weight[1, 1] = bad
        assert project_out(gradient, weight).isnan().all()


def test_scale_invariant_loss_has_nothing_to_project():
    weight = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    ((weight / weight.norm()) @ torch.ones(8, dtype=torch.float64)).square().sum().backward()
    torch.testing.assert_close(project_out(weight.grad, weight.detach()), weight.grad)


def test_strides_zeros_and_emptiness():
    gradient, weight = pair(6, 5)
    expected = project_out(gradient, weight)
    torch.testing.assert_close(project_out(gradient, weight.t().contiguous().t()), expected)
    torch.testing.assert_close(project_out(gradient.t(), weight.t()), expected.t())
    assert torch.equal(project_out(torch.zeros(3, 3), torch.randn(3, 3)), torch.zeros(3, 3))
    assert project_out(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)
    assert project_out(torch.tensor(2.0), torch.tensor(3.0)) == 2
    with pytest.raises(ValueError, match="granularity='rows' must be one of tensor, row"):
        project_out(gradient, weight, granularity="rows")
