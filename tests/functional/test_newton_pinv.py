"""The iterated pseudo-inverse against the authors' code and its closed form."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_softext.functional.gaussian import gaussian_kernel
from hf_softext.functional.newton_pinv import newton_pinv

VECTORS = load_file(Path(__file__).parents[1] / "golden" / "soft_newton.safetensors")
SOFT = {}
SOFT_NORM = {"ridge": 0.0, "start": 2.0, "halve": True}
every_rule = pytest.mark.parametrize("rule", [SOFT, SOFT_NORM], ids=["SOFT", "SOFT++"])


def kernels(*shape: int, spread: float = 1.0) -> Tensor:
    points = spread * torch.randn(*shape, 5, dtype=torch.float64)
    return gaussian_kernel(points, points)


@pytest.mark.parametrize("iterations", [1, 2, 5, 10, 20, 40])
@pytest.mark.parametrize(("rule", "name"), [(SOFT, "ridge"), (SOFT_NORM, "plain")], ids=str)
def test_equals_the_authors_code(rule: dict, name: str, iterations: int) -> None:
    got = newton_pinv(VECTORS["K"], iterations, **rule)
    torch.testing.assert_close(got, VECTORS[f"newton_{name}_{iterations}"], atol=1e-12, rtol=1e-12)


def test_gradient_equals_the_authors_code() -> None:
    matrix = VECTORS["K"].clone().requires_grad_()
    inverse = newton_pinv(matrix, 20)
    inverse.backward(VECTORS["G"])
    torch.testing.assert_close(inverse, VECTORS["Y20"])
    torch.testing.assert_close(matrix.grad, VECTORS["gradK"])


@pytest.mark.parametrize("iterations", [1, 4, 20])
def test_closed_form(iterations: int) -> None:
    matrix = kernels(3, 12, spread=0.5)
    alpha = 1.8 / matrix.sum(-1).amax(-1)[:, None] ** 2
    values, vectors = torch.linalg.eigh(matrix + 0.01 * torch.eye(12))
    filtered = (1 - (1 - alpha * values**2) ** (2**iterations)) / values
    expected = vectors * filtered[:, None, :] @ vectors.mT
    torch.testing.assert_close(newton_pinv(matrix, iterations), expected, atol=1e-8, rtol=1e-8)


@every_rule
def test_every_iteration_squares_the_residual(rule: dict) -> None:
    matrix = kernels(9)
    regular = matrix + rule.get("ridge", 0.01) * torch.eye(9)
    first, third = (torch.eye(9) - regular @ newton_pinv(matrix, n, **rule) for n in (1, 3))
    torch.testing.assert_close(torch.linalg.matrix_power(first, 4), third)


@every_rule
def test_a_matrix_does_not_depend_on_its_batch(rule: dict) -> None:
    # row sums far apart, and one for which alpha is halved
    matrices = torch.stack(
        [torch.eye(8).double(), kernels(8), torch.ones(8, 8).double(), kernels(8, spread=0.1)]
    )
    together = newton_pinv(matrices, **rule)
    for matrix, inverse in zip(matrices, together, strict=True):
        torch.testing.assert_close(newton_pinv(matrix, **rule), inverse, atol=0, rtol=1e-9)


@every_rule
def test_identical_landmarks_stay_finite(rule: dict) -> None:
    ones = torch.ones(16, 16)
    inverse = newton_pinv(ones, **rule)
    assert inverse.isfinite().all()
    # of rank 1, with pseudo-inverse A / 16^2
    torch.testing.assert_close(ones @ inverse @ ones, ones, atol=2e-3, rtol=0)


@every_rule
def test_gradcheck_where_it_converges(rule: dict) -> None:
    matrix = torch.eye(6).double() + 0.1 * kernels(6)
    assert torch.linalg.cond(matrix) < 10
    # of the symmetric part, as the closed form of the derivative is for symmetric matrices too
    assert torch.autograd.gradcheck(
        lambda x: newton_pinv(0.5 * (x + x.mT), 30, **rule), matrix.requires_grad_()
    )


def test_float32_is_good_enough() -> None:
    matrix = kernels(49, spread=0.7)
    assert torch.linalg.cond(matrix) > 500
    wide, narrow = newton_pinv(matrix), newton_pinv(matrix.float()).double()
    assert (wide - narrow).norm() / wide.norm() < 1e-4


def test_nan_is_not_hidden() -> None:
    matrices = kernels(2, 4)
    matrices[1, 0, 0] = torch.nan
    inverse = newton_pinv(matrices)
    assert inverse[0].isfinite().all()
    assert inverse[1].isnan().all()


def test_the_authors_start_loses_the_identity() -> None:
    identity = torch.eye(5)
    assert (newton_pinv(identity, **SOFT_NORM) == 0).all()
    torch.testing.assert_close(newton_pinv(identity, ridge=0.0, halve=True), identity)
