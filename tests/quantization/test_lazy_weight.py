"""`weight` of a quantized layer: read by all, written by nobody, decoded only where it is used."""

import copy
import io

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_softext.quantization.baq.lazy_weight import LazyWeight
from hf_softext.quantization.baq.linear import BaqLinear
from tests.quantization.test_linear import kept_for_backward, random_layer

REFUSED = r"merging into a quantized weight is not supported: call model\.dequantize\(\) first"


@pytest.fixture
def layer():
    return random_layer(24, 40)


@pytest.fixture
def decoded(monkeypatch):
    """A list with an entry for each time that a whole weight is decoded."""
    calls = []
    dequantize = BaqLinear.dequantize

    def counted(self, dtype=None):
        calls.append(dtype)
        return dequantize(self, dtype)

    monkeypatch.setattr(BaqLinear, "dequantize", counted)
    return calls


def test_what_it_is_costs_nothing(layer, decoded):
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device) == (
        (24, 40),
        torch.float32,
        torch.device("cpu"),
    )
    assert (weight.dim(), weight.numel(), weight.nbytes) == (2, 960, 3840)
    assert weight.is_contiguous()
    assert weight.is_floating_point()
    assert not weight.requires_grad
    assert weight._is_hf_initialized
    assert isinstance(weight, torch.Tensor)
    assert weight.data is weight
    assert weight.T.shape == (40, 24)
    assert weight.detach().view(-1).shape == (960,)
    assert weight.float() is weight
    assert decoded == []


def test_operations_give_plain_tensors(layer):
    dense, x = layer.dequantize(), torch.randn(3, 40)
    for operation in (
        lambda w: F.linear(x, w),
        lambda w: x @ w.T,
        lambda w: w + 1,
        lambda w: w.clone(),
        lambda w: w.double(),
        lambda w: w[3:5].sum(0),
        lambda w: torch.linalg.norm(w, dim=1),
        lambda w: torch.cat([w, w]),
        lambda w: torch.zeros(24, 40).copy_(w),
        lambda w: w.new_zeros(3),
        copy.deepcopy,
    ):
        found = operation(layer.weight)
        assert type(found) is torch.Tensor
        assert torch.equal(found, operation(dense))
    assert torch.equal(layer.weight, dense)
    assert layer.weight.tolist() == dense.tolist()
    assert (layer.weight.numpy() == dense.numpy()).all()
    assert repr(layer.weight) == repr(dense)
    assert torch.equal(layer.weight[2].unsqueeze(0).T, dense[2].unsqueeze(0).T)
    file = io.BytesIO()
    torch.save(layer.weight, file)
    assert torch.equal(torch.load(io.BytesIO(file.getvalue())), dense)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.add_(1),
        lambda w: w.data.add_(1),
        lambda w: w.detach().mul_(2),
        lambda w: w.T.zero_(),
        lambda w: w[0].fill_(1),
        lambda w: w.view(-1)[:4].normal_(),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.copy_(torch.zeros(24, 40)),
        lambda w: torch.add(torch.zeros(24, 40), 1, out=w),
        lambda w: torch._foreach_add_([w], 1),
        lambda w: nn.init.normal_(w),
        lambda w: setattr(w, "data", torch.zeros(24, 40)),
    ],
)
def test_writes_are_refused(layer, write):
    before = layer.dequantize()
    with torch.no_grad(), pytest.raises(TypeError, match=REFUSED):
        write(layer.weight)
    assert torch.equal(layer.dequantize(), before)


def test_another_weight_is_refused(layer):
    for value in (torch.zeros(24, 40), nn.Parameter(torch.zeros(24, 40)), None):
        with pytest.raises(TypeError, match=REFUSED):
            layer.weight = value
    with pytest.raises(TypeError, match=REFUSED):
        layer.weight.data += 1


def test_gradient_through_it_keeps_nothing_dense(layer):
    x = torch.randn(3, 40, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(type(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = F.linear(x, layer.weight)
    assert kept == [LazyWeight]
    expected = torch.autograd.grad(F.linear(x, layer.dequantize()).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], expected)
    assert kept_for_backward(lambda: F.linear(x, layer.dequantize())) == [(40, 24)]


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_train_and_are_not_merged_silently(dora, decoded):
    config = peft.LoraConfig(target_modules=["0"], use_dora=dora, init_lora_weights=False)
    base = nn.Sequential(random_layer(24, 40))
    dense = nn.Sequential(nn.Linear(40, 24))
    dense[0].weight.data = base[0].dequantize()
    dense[0].bias.data = base[0].bias.data.clone()
    decoded.clear()
    model, twin = (peft.get_peft_model(one, config) for one in (base, dense))
    if not dora:
        # peft looks at dtype and device of the weight
        assert decoded == []
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learned
    twin.load_state_dict({name: p.detach().clone() for name, p in learned.items()}, strict=False)
    x = torch.randn(20, 40)
    torch.testing.assert_close(model(x), twin(x), atol=1e-4, rtol=1e-4)
    for one in (model, twin):
        one(x).square().sum().backward()
    wanted = dict(twin.named_parameters())
    for name, parameter in learned.items():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-2, rtol=1e-3)
    for safe in (False, True):
        with pytest.raises(TypeError, match=REFUSED):
            model.merge_and_unload(safe_merge=safe)
