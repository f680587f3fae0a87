"""Which modules are found, and that running a model block by block is running the model."""

import pytest
import torch
import transformers as hf
from torch import nn

from hf_softext.quantization.baq.blocks import find_targets
from hf_softext.quantization.baq.replay import Replay
from tests.quantization.calibration_models import MODELS, build, inputs, token_ids

EXPECTED = {
    "llama": ("model.layers", 7),
    "gpt2": ("transformer.h", 4),
    "opt": ("model.decoder.layers", 6),
    "bert": ("bert.encoder.layer", 6),
    "gemma3": ("model.layers", 7),
    "albert": ("albert.encoder.albert_layer_groups", 6),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_linear_modules_of_the_blocks_are_found(name):
    model = build(name)
    stack, count = EXPECTED[name]
    targets = find_targets(model)
    assert [one.name for one in targets.stacks] == [stack]
    assert [len(block.modules) for block in targets.stacks[0].blocks] == [count] * (
        1 if name == "albert" else 3
    )
    linear = {
        own
        for own, module in model.named_modules()
        if isinstance(module, (nn.Linear, hf.pytorch_utils.Conv1D))
    }
    assert linear == {*targets.names, *targets.left_out}
    assert set(targets.left_out.values()) <= {"outside the repeated blocks"}


def test_both_halves_of_t5_are_found():
    targets = find_targets(build("t5"))
    assert [(one.name, len(one.blocks)) for one in targets.stacks] == [
        ("encoder.block", 2),
        ("decoder.block", 3),
    ]
    assert "decoder.block.2.layer.1.EncDecAttention.k" in targets.names
    assert targets.left_out == {"lm_head": "outside the repeated blocks"}


def test_projections_heads_and_named_modules_stay_and_are_told():
    model = build("opt")
    model.model.decoder.layers[1].fc1.weight = model.model.decoder.layers[0].fc1.weight
    targets = find_targets(model, ["fc2", "model.decoder.layers.2"])
    left_out = targets.left_out
    assert left_out["model.decoder.project_in"] == "outside the repeated blocks"
    assert left_out["model.decoder.layers.0.fc2"] == "named by modules_to_not_convert"
    assert left_out["model.decoder.layers.2.fc1"] == "named by modules_to_not_convert"
    assert left_out["model.decoder.layers.0.fc1"] == "shares its weight with another module"
    assert [len(block.modules) for block in targets.stacks[0].blocks] == [4, 4, 0]


def test_router_and_fused_experts_stay_and_are_told():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.up = nn.Linear(4, 4)
            self.experts = nn.Module()
            self.experts.fused = nn.Parameter(torch.zeros(2, 4, 4))

    model = nn.Module()
    model.layers = nn.ModuleList([Mixture(), Mixture()])
    targets = find_targets(model)
    assert targets.names == ["layers.0.up", "layers.1.up"]
    assert targets.left_out == {
        "layers.0.gate": "router of experts",
        "layers.1.gate": "router of experts",
        "layers.0.experts.fused": "fused weights of a kind that cannot be split",
        "layers.1.experts.fused": "fused weights of a kind that cannot be split",
    }


@pytest.mark.parametrize(
    ("make", "prefix", "count"),
    [
        (
            lambda: hf.ViTForImageClassification(
                hf.ViTConfig(
                    hidden_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=24,
                    image_size=16,
                    patch_size=8,
                )
            ),
            "vit.",
            12,
        ),
        (
            lambda: hf.SwinModel(
                hf.SwinConfig(
                    image_size=16,
                    patch_size=2,
                    embed_dim=16,
                    depths=[2, 2],
                    num_heads=[2, 4],
                    window_size=4,
                )
            ),
            "encoder.",
            25,
        ),
    ],
    ids=["vit", "swin"],
)
def test_vision_models_have_targets(make, prefix, count):
    targets = find_targets(make())
    assert len(targets.names) == count
    assert all(name.startswith(prefix) for name in targets.names)


def test_a_model_without_a_stack_is_one_block():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    targets = find_targets(model)
    assert targets.names == ["0", "2"]
    assert [block.name for block in targets.stacks[0].blocks] == [targets.stacks[0].name] == [""]


def test_nothing_to_quantize_says_what_was_looked_for():
    with pytest.raises(ValueError, match=r"Sequential has nothing .*ModuleLists.*\(none at all\)"):
        find_targets(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="21 named by modules_to_not_convert"):
        find_targets(build("llama"), ["model.layers"])


def hidden_states(model, blocks, ids):
    """What each block puts out in a plain run."""
    found = {}

    def hook(name):
        def keep(module, args, output):
            found[name] = (output[0] if isinstance(output, tuple) else output).clone()

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in blocks]
    with torch.no_grad():
        model(**inputs(model, ids))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"albert"}))
def test_block_by_block_is_the_plain_run_to_the_bit(name):
    model, sequences = build(name), token_ids()
    targets = find_targets(model)
    replay = Replay(model, targets, sequences)
    blocks = [block.name for stack in targets.stacks for block in stack.blocks]
    assert [block.name for stack in replay.stacks for block in stack.blocks] == blocks
    expected = [hidden_states(model, blocks, ids) for ids in sequences]
    for stack in replay.stacks:
        for index, block in enumerate(stack.blocks):
            for sequence in range(len(sequences)):
                replay.run(stack, index, sequence)
                replay.run(stack, index, sequence, keep=True)
                hidden = replay._states[stack.name][sequence].hidden
                assert torch.equal(hidden, expected[sequence][block.name]), block.name
        replay.finish(stack)
    # and the model is as it was
    assert not any("forward" in vars(module) for module in model.modules())
    again = hidden_states(model, blocks, sequences[0])
    assert all(torch.equal(again[block], expected[0][block]) for block in blocks)


@pytest.mark.parametrize("name", ["llama", "t5", "gemma3n"])
def test_activations_are_made_again_from_nothing(name):
    model, sequences = build(name), token_ids()
    replay = Replay(model, find_targets(model), sequences)
    last = replay.stacks[-1]
    blocks = [block.name for stack in replay.stacks for block in stack.blocks]
    for stack in replay.stacks[:-1]:
        replay.finish(stack)
    for sequence in range(len(sequences)):
        replay.run(last, 0, sequence, keep=True)
    for sequence, ids in enumerate(sequences):
        replay.run(last, 1, sequence, keep=True)
        hidden = replay._states[last.name][sequence].hidden
        assert torch.equal(hidden, hidden_states(model, blocks, ids)[last.blocks[1].name])


def test_one_hidden_state_a_sequence_is_kept():
    model, sequences = build("t5"), token_ids()
    replay = Replay(model, find_targets(model), sequences)
    for stack in replay.stacks:
        for index in range(len(stack.blocks)):
            for sequence in range(len(sequences)):
                replay.run(stack, index, sequence, keep=True)
        replay.finish(stack)
    kept = [state for states in replay._states.values() for state in states.values()]
    assert len(kept) == len(replay.stacks) * len(sequences)
    assert all(state.hidden.shape[-1] == 16 and not state.shared for state in kept)


def test_blocks_that_run_several_times_are_one():
    model = build("albert")
    with pytest.warns(UserWarning, match=r"albert_layer_groups .* run more than once"):
        replay = Replay(model, find_targets(model), token_ids())
    (stack,) = replay.stacks
    assert [block.name for block in stack.blocks] == [stack.name]
    assert len(stack.blocks[0].modules) == 6


def test_blocks_that_need_more_than_the_one_before_are_one():
    class Skipping(hf.LlamaModel):
        """Adds what the first block has put out before the last one."""

        def __init__(self, config):
            super().__init__(config)
            first, last = self.layers[0], self.layers[-1]
            kept = []
            first.register_forward_hook(lambda module, args, output: kept.append(output))
            last.register_forward_pre_hook(lambda module, args: (args[0] + kept.pop(),))

    config = build("llama").config
    model = Skipping(config).eval()
    with pytest.warns(UserWarning, match=r"layers\.2 alone computes something"):
        replay = Replay(model, find_targets(model), token_ids())
    assert len(replay.stacks[0].blocks) == 1


def test_blocks_that_are_not_run_are_told():
    model = build("llama")
    config = model.config
    config.num_hidden_layers = 2
    replay = Replay(model, find_targets(model), token_ids())
    assert [block.name for block in replay.silent] == ["model.layers.2"]
    assert len(replay.stacks[0].blocks) == 2


def test_a_model_of_images_is_refused():
    config = hf.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = hf.ViTModel(config)
    with pytest.raises(ValueError, match=r'ViTModel does not run on token ids.*solver="rtn"'):
        Replay(model, find_targets(model), token_ids())
