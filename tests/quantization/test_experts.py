"""Experts as linear layers: the same outputs, the same checkpoints, and back again."""

import copy
import importlib
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn

from hf_softext.quantization.baq.experts import LoopedExperts, fuse_experts, split_experts
from tests.quantization.checkpoints import dense, load, logits, quantize, quantized_modules

EXPERTS, HIDDEN, TOKENS, CHOSEN = 4, 8, 7, 2
PARTS = ("gate_up", "down")


class AnyConfig(dict):
    """Answers whatever the experts of an architecture ask their config."""

    _experts_implementation = "eager"

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        for part, value in (
            ("act", "silu"),
            ("limit", 1.5),
            ("alpha", 1.5),
            ("eps", 1e-5),
            ("num_", EXPERTS),
            ("n_routed", EXPERTS),
            ("hidden", HIDDEN),
        ):
            if part in name:
                return value
        return 12


def experts_classes(folder="*"):
    """All classes of transformers that say how the weights of their experts lie."""
    for path in sorted((Path(transformers.__file__).parent / "models").glob(folder)):
        for file in path.glob("modeling_*.py"):
            if "use_experts_implementation" in file.read_text(encoding="utf-8"):
                module = importlib.import_module(f"transformers.models.{path.name}.{file.stem}")
                for one in vars(module).values():
                    own = inspect.isclass(one) and one.__module__ == module.__name__
                    if own and hasattr(one, "_apply_gate"):
                        yield one


def holder_of(kind):
    holder = nn.Module()
    holder.experts = kind(AnyConfig())
    with torch.no_grad():
        for parameter in holder.parameters():
            parameter.normal_(std=0.5)
    return holder


def routed():
    index = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(TOKENS)])
    # an expert without a token, and a place past the last expert
    index[index == 2] = 0
    index[0, 1] = EXPERTS
    return torch.randn(TOKENS, HIDDEN), index, torch.rand(TOKENS, CHOSEN)


def assert_same_outputs(kind):
    holder = holder_of(kind)
    fused, inputs = holder.experts, routed()
    with torch.no_grad():
        expected = fused(*inputs)
    assert split_experts(holder) == (["experts"], [])
    assert isinstance(holder.experts, LoopedExperts)
    names = {name for name, _ in holder.named_parameters()}
    assert names == {
        f"experts.{part}.{expert}.weight" for part in PARTS for expert in range(EXPERTS)
    }
    with torch.no_grad():
        torch.testing.assert_close(holder.experts(*inputs), expected)
    twin = copy.deepcopy(holder)
    assert fuse_experts(holder) == ["experts"]
    assert holder.experts is fused
    with torch.no_grad():
        assert torch.equal(fused(*inputs), expected)
        torch.testing.assert_close(twin.experts(*inputs), expected)


# the usual kind; two that combine gate and up in their own way; one without an act_fn
@pytest.mark.parametrize("folder", ["mixtral", "qwen3_moe", "beam", "minimax_m3_vl", "glm5_next"])
def test_outputs_are_those_of_the_fused_module(folder):
    found = list(experts_classes(folder))
    if not found:
        pytest.skip(f"this transformers has no {folder}")
    for kind in found:
        assert_same_outputs(kind)


def test_every_kind_in_transformers_is_right_or_refused():
    split, refused = [], []
    for kind in experts_classes():
        if split_experts(holder_of(kind))[0]:
            assert_same_outputs(kind)
            split.append(kind)
        else:
            refused.append(kind)
    assert len(split) > 5 * len(refused) > 0


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("gpt_oss", "they have biases"),
        ("aria", "their weights are transposed"),
        ("nemotron_h", "they have no gate"),
        ("muse_spark", "they have a norm of their own"),
    ],
)
def test_other_kinds_stay_and_are_told(folder, reason):
    for kind in experts_classes(folder):
        holder = holder_of(kind)
        fused = holder.experts
        assert split_experts(holder) == ([], [("experts", reason)])
        assert holder.experts is fused


def test_experts_that_do_not_say_how_their_weights_lie_stay():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 3))
            self.down_proj = nn.Parameter(torch.zeros(2, 3, 2))

        def forward(self, x):
            return x

    model = nn.Sequential(Unknown(), nn.Linear(3, 3))
    split, kept = split_experts(model)
    assert split == []
    assert [name for name, _ in kept] == ["0"]
    assert "do not say how their weights lie" in kept[0][1]


def test_splitting_copies_nothing_and_works_without_memory():
    holder = holder_of(next(experts_classes("mixtral")))
    place = holder.experts.gate_up_proj.data_ptr()
    shape = holder.experts.gate_up_proj.shape
    split_experts(holder)
    size = holder.experts.gate_up[0].weight.nbytes
    places = [layer.weight.data_ptr() - place for layer in holder.experts.gate_up]
    assert places == [size * expert for expert in range(EXPERTS)]
    # for code that reads the fused weight
    assert holder.experts.gate_up_proj.shape == shape
    assert torch.equal(holder.experts.down_proj[1] + 0, holder.experts.down[1].weight)
    with torch.device("meta"):
        empty = holder_of(next(experts_classes("mixtral")))
    assert split_experts(empty) == (["experts"], [])
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert fuse_experts(empty) == ["experts"]


def test_gradients_reach_experts_and_inputs():
    kind = next(experts_classes("mixtral"))
    fused = holder_of(kind).experts
    looped = copy.deepcopy(nn.ModuleDict({"experts": fused}))
    split_experts(looped)
    x, index, weights = routed()
    grads = []
    for module in (fused, looped["experts"]):
        given = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        module(given[0], index, given[1]).square().sum().backward()
        grads.append([one.grad for one in given])
    torch.testing.assert_close(*grads)
    for layer, own in zip(looped["experts"].gate_up, fused.gate_up_proj.grad, strict=True):
        # an expert that saw no token has none
        found = torch.zeros_like(own) if layer.weight.grad is None else layer.weight.grad
        torch.testing.assert_close(found, own)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("mixtral", "model.layers.1.block_sparse_moe"), ("qwen3-moe", "model.layers.1.mlp")],
)
def test_names_in_a_checkpoint(name, prefix, tmp_path):
    """Those that transformers renames the block to when it saves, with ours within."""
    model = quantize(name, tmp_path)
    model.save_pretrained(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = {key for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    tensors = ("planes", "levels", "ranges", "clip")
    experts = {
        f"{prefix}.experts.{part}.{expert}.{tensor}"
        for part in PARTS
        for expert in range(4)
        for tensor in tensors
    }
    assert names == experts | {f"{prefix}.gate.weight"}
    again = load(name, tmp_path / "out")
    assert sum("experts" in own for own in quantized_modules(again)) == 16
    assert torch.equal(logits(again), logits(model))
    assert fuse_experts(again) == []
    plain = again.dequantize()
    kinds = {type(module) for module in dense(name).modules()}
    assert {type(module) for module in plain.modules()} == kinds
