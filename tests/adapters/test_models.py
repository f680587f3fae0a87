"""Every model type that has default targets: it starts as the base and learns."""

import pytest
import torch
import transformers as hf
from peft import get_peft_model

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear
from hf_softext.adapters.snnk.targets import TARGETS
from tests.adapters.models import COUNTS, QUIET, ROWS, randomize, row

pytestmark = QUIET
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def adapted(model):
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SnnkAdapterLinear)
    }


def test_every_type_is_tested():
    assert {row.build().config.model_type for row in ROWS} >= set(TARGETS)


@rows
def test_it_starts_as_the_base_model_and_learns(row):
    base = row.build()
    inputs = row.inputs("left" if row.kind == "decoder" else None)
    with torch.no_grad():
        expected = row.run(base, inputs)
    total = sum(parameter.numel() for parameter in base.parameters())
    model = get_peft_model(base, SnnkConfig(num_features=4)).eval()
    for ours, theirs in zip(row.run(model, inputs), expected, strict=True):
        assert torch.equal(ours, theirs)
    layers = adapted(model)
    assert len(layers) == COUNTS.get(row.name, 4), sorted(layers)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(".snnk_" in name for name in learning)
    # O (R + 1) for each
    counted = sum(layer.out_features * 5 for layer in layers.values())
    assert model.get_nb_trainable_parameters() == (counted, total + counted)
    randomize(model)
    changed = row.run(model, inputs)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(changed, expected, strict=True))
    sum(output.square().mean() for output in changed).backward()
    assert all(parameter.grad.any() for parameter in learning.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learning)
    with model.disable_adapter(), torch.no_grad():
        for ours, theirs in zip(row.run(model, inputs), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "whisper"])
def test_generate(name):
    case = row(name)
    base = case.build()
    inputs = case.inputs()
    given = {
        key: value for key, value in inputs.items() if not key.startswith(("decoder", "position"))
    }

    def tokens(model, **kwargs):
        return model.generate(**given, max_new_tokens=6, min_new_tokens=6, **kwargs)

    expected = tokens(base)
    model = get_peft_model(base, SnnkConfig(num_features=4)).eval()
    assert torch.equal(tokens(model), expected)
    randomize(model)
    changed = tokens(model)
    assert not torch.equal(changed, expected)
    # the cache sees what a forward pass without one sees
    assert torch.equal(tokens(model, use_cache=False), changed)
    with model.disable_adapter():
        assert torch.equal(tokens(model), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "vit"])
def test_all_linear_twice(name):
    case = row(name)
    base = case.build()
    heads = {base.get_output_embeddings()} if case.kind in ("decoder", "seq2seq") else set()
    linear = {
        key
        for key, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | hf.pytorch_utils.Conv1D) and module not in heads
    }
    model = get_peft_model(base, SnnkConfig(num_features=4, target_modules="all-linear"))
    assert set(adapted(model)) == linear
    model.add_adapter("second", SnnkConfig(num_features=2, target_modules="all-linear"))
    assert set(adapted(model)) == linear
    assert all("second" in layer.snnk_weight for layer in adapted(model).values())
