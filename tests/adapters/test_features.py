"""Random features against the authors' code, and against the kernels that they estimate."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_softext.adapters.snnk.kernels import KERNELS, in_its_span
from hf_softext.functional.kernel_features import linear_features, relu_features
from hf_softext.functional.random_projection import random_projection
from hf_softext.functional.trig_features import cos_features, cos_weights, exponential_tower
from hf_softext.functional.unit_rows import unit_rows

FOLDER = Path(__file__).parents[1] / "golden"


def test_a_projection_that_memory_cannot_hold_is_refused_at_once():
    with pytest.raises(RuntimeError, match="allocate"):
        random_projection(10**13, 4, generator())


def golden(name):
    return load_file(FOLDER / f"snnk_{name}.safetensors")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_relu_features_are_the_authors():
    given = golden("relu_features")
    for shape in ("2", "3"):
        x = given["x" + shape]
        for floor in ("0", "-5.0", "0.1"):
            close(relu_features(x, given["G"], float(floor)), given[f"phi{shape}_c{floor}"])
    unit = unit_rows(given["x2"])
    close(relu_features(unit, given["G"]), given["phi2_norm"])
    close(relu_features(unit * 8**0.25, given["G"]), given["phi2_norm_const"])


def test_their_layer_and_its_gradients():
    given = golden("relu_layer")
    close(relu_features(given["W"], given["G"]), given["weights"])
    x, weights = (given[key].requires_grad_() for key in ("x", "weights"))
    y = relu_features(x, given["G"]) @ weights.T
    close(y, given["y"])
    y.backward(given["upstream"])
    close(x.grad, given["grad_x"])
    close(weights.grad, given["grad_weights"])


def test_a_real_tower_is_their_exponential_feature():
    given = golden("trig_features")
    for name, function in (("sin", math.sin), ("cos", math.cos)):
        for rows, expected in (("x2", f"phi2_{name}"), ("W", f"phiW_{name}")):
            for xi in given["xis"].unique():
                scale = function(xi)
                log_modulus, phase = exponential_tower(given[rows], given["G"], complex(scale))
                assert not phase.any()
                chosen = given["xis"] == xi
                assert chosen.any()
                close((scale * log_modulus.exp())[:, chosen], given[expected][:, chosen], 1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.25, 1.0])
def test_complex_towers_are_theirs(shift):
    given = golden("urf_cos_asym")

    def feature(log_modulus, phase):
        return torch.polar(log_modulus.exp(), phase)

    # they have a = i, b = 1, and both frequencies, each side divided by sqrt(2)
    x = feature(*exponential_tower(given["x"], given["G"], 1j, shift))
    log_modulus, phase = exponential_tower(given["W"], given["G"], 1 + 0j, shift)
    w = feature(log_modulus, phase + given["b"][:, None])
    for ours, theirs in ((x, f"x_feat_M{shift}"), (w, f"W_feat_M{shift}")):
        both = torch.view_as_complex(given[theirs]) * 2**0.5
        close(ours, both[:, :64], 1e-5)
        close(ours.conj(), both[:, 64:], 1e-5)
    close((x @ w.T).real, given[f"y_M{shift}"], 1e-5)


def test_relu_features_estimate_the_arc_cosine_kernel():
    x, w = normal(2, 8)
    angle = math.acos(x @ w / (x.norm() * w.norm()))
    exact = x.norm() * w.norm() * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
    exact = exact / (2 * math.pi)
    sizes, errors = (200, 4000, 80_000), []
    for size in sizes:
        tries = []
        for seed in range(20):
            g = random_projection(size, 8, generator(seed), orthogonal=False).double()
            tries.append((relu_features(x, g) @ relu_features(w, g) - exact).square())
        errors.append(torch.stack(tries).mean().sqrt() / exact)
    assert errors[-1] < 0.02
    slope = math.log(errors[-1] / errors[0]) / math.log(sizes[-1] / sizes[0])
    assert -0.65 < slope < -0.35
    # which is not what the layer that it replaces would give
    assert exact > 0.1
    assert abs(exact - (x @ w).relu()) > 0.1


@pytest.mark.parametrize("orthogonal", [True, False])
def test_cos_and_sin(orthogonal):
    x, w = unit_rows(normal(3, 8)), unit_rows(normal(5, 8, seed=1))
    bias = torch.linspace(-2, 2, 5, dtype=torch.float64)
    g = random_projection(100_000, 8, generator(), orthogonal).double()
    z = x @ w.T + bias
    features = cos_features(x, g)
    cos = features @ cos_weights(w, g, bias).T
    sin = features @ cos_weights(w, g, bias - math.pi / 2).T
    # the standard deviation of one term is about 1
    close(cos, z.cos(), 4 / 100_000**0.5)
    close(sin, z.sin(), 4 / 100_000**0.5)
    close(cos**2 + sin**2, torch.ones_like(z), 0.03)


def test_the_linear_kernel_is_exact_where_the_projection_is():
    g = random_projection(24, 8, generator(), equal_norms=True).double()
    close(g.T @ g / 24, torch.eye(8, dtype=torch.float64))
    x, w = normal(4, 8), normal(6, 8, seed=1)
    close(linear_features(x, g) @ linear_features(w, g).T, x @ w.T, 1e-5)


@pytest.mark.parametrize("kernel", ["relu", "linear", "cos", "sin"])
@pytest.mark.parametrize("rows", [3, 8, 12])
def test_the_short_way_to_the_first_weights(kernel, rows):
    kernel = KERNELS[kernel]
    g = random_projection(rows, 8, generator()).double()
    flat, outside = in_its_span(g)
    assert (flat.shape, outside) == ((rows, min(rows, 8) + 1), max(8 - rows, 0))
    # what it stands for: rows of a W that has these coordinates in the span of G, and this length
    basis = torch.linalg.lstsq(flat[:, :-1], g).solution.T
    short = normal(5, flat.shape[1], seed=2)
    w = short[:, :-1] @ basis.T
    if outside:
        away = normal(8, seed=3)
        away = unit_rows(away - basis @ (basis.T @ away))
        w = w + short[:, -1:] * away
    else:
        short[:, -1] = 0
    close(kernel.weights(short, flat, 0.0), kernel.weights(w, g, 0.0))
    # and how that is distributed
    torch.manual_seed(0)
    # rows that are not short, so that the length matters, and not long, whose cosines have no mean
    ours = kernel.start(100_000, g.float(), 0.0, 0.2)
    drawn = kernel.weights(0.2 * torch.randn(100_000, 8), g.float(), 0.0)
    for statistic in (lambda t: t.mean(0), lambda t: t.T.cov()):
        close(statistic(ours), statistic(drawn), 0.01)


def test_rows_of_an_orthogonal_projection():
    g = random_projection(20, 8, generator())
    assert g.dtype == torch.float32
    lengths = g.norm(dim=1)
    assert lengths.std() > 0.1
    for block in (g[:8], g[8:16], g[16:]):
        gram = block @ block.T
        close(gram, gram.diagonal().diag(), 1e-5)
    # like those of the authors: chi lengths, or all sqrt(D)
    many = random_projection(8000, 8, generator())
    assert abs(many.square().sum(1).mean() - 8) < 0.2
    assert abs(many.square().sum(1).var() - 16) < 2
    # each entry is standard normal, whatever its place
    assert many.mean(0).abs().max() < 0.05
    assert (many.square().mean(0) - 1).abs().max() < 0.07
    equal = random_projection(20, 8, generator(), equal_norms=True)
    close(equal.norm(dim=1), torch.full((20,), 8**0.5))


def test_a_projection_depends_on_its_generator_only():
    first = random_projection(5, 7, generator(3))
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            second = random_projection(5, 7, generator(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, random_projection(5, 7, generator(4)))


KINDS = [relu_features, lambda x, g: relu_features(x, g, -0.3), linear_features, cos_features]


@pytest.mark.parametrize("features", KINDS)
def test_gradients(features):
    g = normal(6, 5)
    x = normal(4, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: features(x, g), (x,))


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 3, 5)])
def test_shapes_and_rows_that_are_not_numbers(features, shape):
    g, x = normal(6, 5), normal(*shape)
    clean = features(x, g)
    assert clean.shape[:-1] == shape[:-1]
    if len(shape) == 3 and len(x):
        x[0, 1, 2] = torch.nan
        dirty = features(x, g)
        assert dirty[0, 1].isnan().all()
        dirty[0, 1] = clean[0, 1]
        assert torch.equal(dirty, clean)


def test_rows_of_zeros_stay_zero_and_pass_no_gradient_on():
    x = torch.zeros(2, 5, requires_grad=True)
    y = relu_features(x, normal(6, 5, dtype=torch.float32))
    assert not y.any()
    y.sum().backward()
    assert not x.grad.any()


def test_what_would_overflow_is_held():
    x = torch.full((2, 768), 30.0)
    g = random_projection(8, 768, generator())
    x[0] = -x[0]
    features = cos_features(x, g)
    assert features.isfinite().all()
    assert features.abs().max() > 1e20
    # (1 + 4 M)^(D / 4) alone is 2^192
    log_modulus, phase = exponential_tower(unit_rows(x), g, 1j, 0.25)
    assert log_modulus.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exponential_tower(unit_rows(x), g, 1j, 0.25)[1], phase)
