"""Stacks of layers as one matrix on fixed features."""

import math

import pytest
import torch
from torch import nn

from hf_softext.adapters.snnk.bundling import BundledModule, Cos, Sin, bundle_sequential
from hf_softext.adapters.snnk.closed_form import fit_closed_form
from hf_softext.adapters.snnk.random_features import RandomFeatures
from hf_softext.functional.trig_features import cos_features, cos_weights


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def unit_(linear):
    with torch.no_grad():
        linear.weight.copy_(nn.functional.normalize(linear.weight, dim=-1))
    return linear


def relu_tower(x, bias, projection):
    x = torch.cat((x, torch.as_tensor(bias, dtype=x.dtype).expand(len(x)).reshape(-1, 1)), 1)
    return (x @ projection.T).clamp(min=0) / len(projection) ** 0.5


def bundled_reference(network, projections, x):
    """The chain of layers one after the other, nothing multiplied out."""
    z, readout = x, None
    linear = [module for module in network if isinstance(module, nn.Linear)]
    activations = [module for module in network if not isinstance(module, nn.Linear)]
    for layer, activation, g in zip(linear, activations, projections, strict=False):
        weight = layer.weight if readout is None else layer.weight @ readout
        if isinstance(activation, nn.ReLU):
            readout, z = relu_tower(weight, layer.bias, g), relu_tower(z, torch.ones(1), g)
        else:
            shift = math.pi / 2 if isinstance(activation, Sin) else 0.0
            readout, z = cos_weights(weight, g, layer.bias - shift), cos_features(z, g)
    # what the last activation would have put out, and then the last layer on it
    return linear[-1](z @ readout.T)


@pytest.mark.parametrize("kinds", [(nn.ReLU,), (nn.ReLU, nn.ReLU), (Cos, nn.ReLU), (Sin, Cos)])
def test_multiplying_out_changes_nothing(kinds):
    widths = (5, 7, 6, 3)
    modules = []
    for number, kind in enumerate(kinds):
        modules += [nn.Linear(widths[number], widths[number + 1]), kind()]
    network = nn.Sequential(*modules, nn.Linear(widths[len(kinds)], 4)).double()
    bundled = bundle_sequential(network, (10, 12)[: len(kinds)], seed=3)
    x = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64), dim=-1)
    projections = [part.projection.double() for part in bundled.features]
    close(bundled(x), bundled_reference(network, projections, x))
    # only the matrix and its bias are trained
    shapes = {name: tuple(p.shape) for name, p in bundled.named_parameters()}
    last = bundled.features[-1].num_features
    assert shapes == {"readout.weight": (4, last), "readout.bias": (4,)}
    if len(kinds) == 2:
        assert bundled.features[1].in_features == 10


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_with_an_exact_projection_are_unchanged(bias):
    network = nn.Sequential(nn.Linear(4, 5, bias), nn.Identity(), nn.Linear(5, 3), nn.Linear(3, 2))
    first = 3 * (4 + bias)
    bundled = bundle_sequential(network, (first, 2 * (first + 1)), equal_norms=True)
    x = torch.randn(2, 7, 4)
    close(bundled(x), network(x), 1e-5)


def test_a_cosine_network_is_estimated():
    network = nn.Sequential(unit_(nn.Linear(6, 4)), Cos(), nn.Linear(4, 3))
    x = torch.nn.functional.normalize(torch.randn(9, 6), dim=-1)
    errors = []
    for size in (200, 20_000):
        made = [bundle_sequential(network, size, seed=seed)(x) for seed in range(5)]
        errors.append((torch.stack(made) - network(x)).square().mean().sqrt().item())
    assert errors[1] < 0.03
    assert 5 < errors[0] / errors[1] < 20


def test_a_part_is_bundled_and_the_rest_stays():
    network = nn.Sequential(
        nn.Linear(5, 7),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(7, 6),
        nn.LayerNorm(6),
        nn.ReLU(),
        nn.Linear(6, 2),
    ).eval()
    bundled = bundle_sequential(network, 10, layers=1)
    x = torch.randn(3, 5)
    readout = bundled.features[0].of_weights(network[0].weight, network[0].bias)
    h = network[3](bundled.features[0](x) @ readout.T)
    close(bundled(x), network[4:](h), 1e-5)
    assert [module is old for module, old in zip(bundled.rest, network[4:], strict=True)]
    assert not bundled.training
    # V itself stays a layer where no linear one follows
    early = bundle_sequential(nn.Sequential(network[0], nn.ReLU(), nn.LayerNorm(7)), 10, layers=1)
    close(early(x), network.get_submodule("4").__class__(7)(early.features[0](x) @ readout.T), 1e-5)
    close(bundle_sequential(network[:2], 10).readout.weight, readout, 1e-6)


def test_a_bundled_network_is_fitted_in_closed_form():
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 2))
    bundled = bundle_sequential(network.double(), (12, 14))
    x = torch.randn(80, 5, dtype=torch.float64)
    y = torch.stack((x[:, 0].abs(), x.sum(1)), 1)
    fit_closed_form(bundled, [(x, y)], ridge=0.1, relative=False, progress=False)
    parameters = [*bundled.parameters()]
    objective = (bundled(x) - y).square().sum() + 0.1 * parameters[0].square().sum()
    for gradient in torch.autograd.grad(objective, parameters):
        assert gradient.abs().max() < 1e-8


def test_dtype_seed_and_state():
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)).to(torch.bfloat16)
    bundled = bundle_sequential(network, 8)
    assert bundled.readout.weight.dtype == torch.bfloat16
    x = torch.randn(3, 5, dtype=torch.bfloat16)
    assert bundled(x).dtype == torch.bfloat16
    other = bundle_sequential(network, 8, seed=1)
    assert not torch.equal(other.features[0].projection, bundled.features[0].projection)
    other.load_state_dict(bundled.state_dict())
    assert torch.equal(other(x), bundled(x))
    assert torch.equal(bundle_sequential(network, 8)(x), bundled(x))


def test_mistakes():
    with pytest.raises(TypeError, match=r"is a Linear, not a torch\.nn\.Sequential"):
        bundle_sequential(nn.Linear(2, 2), 4)
    with pytest.raises(TypeError, match="module 1 is a GELU, which has no kernel"):
        bundle_sequential(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)), 4)
    with pytest.raises(TypeError, match="module 0 is a ReLU without a linear layer"):
        bundle_sequential(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), 4)
    with pytest.raises(ValueError, match="module 2 takes 4 features"):
        bundle_sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(4, 2)), 4)
    with pytest.raises(ValueError, match="there are 0 linear layers"):
        bundle_sequential(nn.Sequential(nn.Linear(2, 3)), 4)
    two = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    for layers in (0, 2, -1, True):
        with pytest.raises(ValueError, match=f"layers={layers}"):
            bundle_sequential(two, 4, layers=layers)
    with pytest.raises(ValueError, match=r"seed=1\.5"):
        bundle_sequential(two, 4, seed=1.5)
    # subclasses that compute something else
    backwards = type("Backwards", (nn.Sequential,), {"forward": lambda self, x: x})
    with pytest.raises(TypeError, match="is a Backwards, not"):
        bundle_sequential(backwards(*two), 4)
    halved = type("Halved", (nn.Linear,), {"forward": lambda self, x: x})
    with pytest.raises(TypeError, match="module 0 is a Halved, which has no kernel"):
        bundle_sequential(nn.Sequential(halved(2, 3), nn.ReLU(), nn.Linear(3, 2)), 4)
    with pytest.raises(ValueError, match="2 numbers for 1 bundled"):
        bundle_sequential(two, (4, 4))
    with pytest.raises(ValueError, match="num_features=0"):
        bundle_sequential(two, 0)
    with pytest.raises(ValueError, match="must take what the one before"):
        BundledModule([RandomFeatures(4, 6), RandomFeatures(5, 6)], nn.Linear(6, 2))
