"""Gram matrices of the right inputs, in both passes; what is refused, reported and left alone."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

from hf_softext.quantization.baq import calibrate
from hf_softext.quantization.baq.blocks import find_targets
from hf_softext.quantization.baq.calibrate import quantize_model
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.experts import split_experts
from hf_softext.quantization.baq.linear import BaqLinear
from tests.quantization.calibration_models import build, inputs, token_ids

# what row ranges and level maps take is much beside matrices this small
CONFIG = {"bits": 9.0, "refine": 0, "clip": False}
ROOT = Path(__file__).parents[2]
NAMES = ["llama", "gpt2", "opt", "bert", "t5", "gemma3", "gemma3n", "mixtral"]


def plain_gram(model, name, sequences):
    """Sum of x^T x over a plain run of the whole model, in double precision."""
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args: found.append(args[0].reshape(-1, args[0].shape[-1]).double())
    )
    with torch.no_grad():
        for ids in sequences:
            model(**inputs(model, ids))
    handle.remove()
    rows = torch.cat(found)
    return rows.T @ rows, len(rows)


def put(model, name, quantized):
    weight = quantized.dequantize()
    module = model.get_submodule(name)
    module.weight.data = weight.T if isinstance(module, Conv1D) else weight


def assert_gram(gram, expected):
    scale = expected.diagonal().clamp(min=1e-30).sqrt()
    error = (gram - expected).abs() / (scale[:, None] * scale)
    assert error.max() < 1e-5


@pytest.fixture
def seen(monkeypatch):
    """What the solver is asked, and what it answers, in order."""
    record = {"measured": [], "solved": []}
    measure, solve = calibrate.measure, calibrate.solve

    def measuring(weight, gram, settings):
        record["measured"].append((record["name"], weight, gram))
        return measure(weight, gram, settings)

    def solving(weight, gram, levels, settings):
        found, outcome = solve(weight, gram, levels, settings)
        record["solved"].append((record["name"], gram, found))
        return found, outcome

    def naming(name):
        record["name"] = name
        return naming_error(name)

    naming_error = calibrate._naming
    monkeypatch.setattr(calibrate, "_naming", naming)
    monkeypatch.setattr(calibrate, "measure", measuring)
    monkeypatch.setattr(calibrate, "solve", solving)
    return record


@pytest.mark.parametrize("name", NAMES)
def test_both_passes_see_what_the_model_itself_makes(name, seen, monkeypatch):
    # the fast path for a few tokens rounds
    monkeypatch.setenv("SOFTEXT_PACKED", "0")
    model, sequences = build(name), token_ids()
    plain = copy.deepcopy(model)
    split_experts(plain)
    reports = quantize_model(model, BaqConfig(**CONFIG), sequences=sequences)
    names = [report.name for report in reports]
    assert names == find_targets(plain).names
    for kind in ("measured", "solved"):
        assert sorted(one[0] for one in seen[kind]) == sorted(names)
    # the first pass: the model in full precision
    for own, weight, gram in seen["measured"]:
        module = plain.get_submodule(own)
        expected = module.weight.T if isinstance(module, Conv1D) else module.weight
        assert torch.equal(weight, expected.float())
        assert_gram(gram, plain_gram(plain, own, sequences)[0])
    # the second: each on what the quantized ones before it make
    told = {report.name: report.tokens for report in reports}
    for own, gram, found in seen["solved"]:
        expected, tokens = plain_gram(plain, own, sequences)
        assert_gram(gram, expected)
        assert told[own] == tokens
        put(plain, own, found)
    # and what comes out is what the last of these models is
    for own in names:
        assert isinstance(model.get_submodule(own), BaqLinear)
    with torch.no_grad():
        given = inputs(model, sequences[1])
        torch.testing.assert_close(
            model(**given).logits, plain(**given).logits, rtol=1e-3, atol=1e-3
        )


def test_modules_with_one_input_share_its_matrix(seen):
    quantize_model(build("llama"), BaqConfig(**CONFIG), sequences=token_ids())
    grams = [id(gram) for _, gram, _ in seen["solved"][:7]]
    # q, k, v | o | gate, up | down
    assert [grams.index(gram) for gram in grams] == [0, 0, 0, 3, 4, 4, 6]


def test_one_block_for_layers_that_run_several_times(seen):
    model, sequences = build("albert"), token_ids()
    plain = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="more than once"):
        reports = quantize_model(model, BaqConfig(**CONFIG), sequences=sequences)
    tokens = 3 * sum(ids.shape[1] for ids in sequences)
    assert {report.tokens for report in reports} == {tokens}
    solved = seen["solved"]
    # what is quantized in a stage comes back into its own input
    for stage in (solved[:3], *([one] for one in solved[3:])):
        for own, gram, _ in stage:
            expected, count = plain_gram(plain, own, sequences)
            assert_gram(gram, expected)
            assert count == tokens
        for own, _, found in stage:
            put(plain, own, found)


def test_expert_without_a_token_is_rounded_and_told(seen):
    config = build("mixtral").config
    config.num_local_experts = 5
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            # two of the first four are always above the last one's zero
            one = layer.mlp.gate.weight[0]
            layer.mlp.gate.weight.copy_(torch.stack([one, -one, 2 * one, -2 * one, 0 * one]))
    with pytest.warns(UserWarning, match=r"modules, .* saw fewer .*; 6 of them saw none"):
        reports = quantize_model(model, BaqConfig(**CONFIG), sequences=token_ids())
    tokens = {report.name: report.tokens for report in reports}
    silent = {name for name, count in tokens.items() if count == 0}
    places = [f"model.layers.{layer}.mlp.experts" for layer in range(3)]
    assert silent == {f"{place}.{kind}.4" for place in places for kind in ("gate_up", "down")}
    for own, gram, _ in seen["solved"]:
        assert (gram is None) == (own in silent)


def test_rtn_runs_nothing_and_needs_nothing(seen, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(model, "forward", None)
    config = BaqConfig(solver="rtn", **CONFIG)
    reports = quantize_model(model, config)
    assert len(reports) == 21
    assert all(report.tokens == 0 for report in reports)
    assert all(gram is None for _, gram, _ in seen["solved"])
    assert config.calibration is None


def test_uniform_widths_need_no_first_pass(seen):
    config = BaqConfig(bits=4, allocation="uniform", refine=0)
    reports = quantize_model(build("llama"), config, sequences=token_ids())
    assert seen["measured"] == []
    assert len(reports) == 21
    assert all((found.levels == 16).all() for _, _, found in seen["solved"])


def test_dead_columns_get_no_bits_with_uniform_widths(seen):
    model = build("opt")
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.weight[5] = 0
            layer.fc1.bias[5] = -1
    reports = quantize_model(
        model, BaqConfig(bits=4, allocation="uniform", refine=0), sequences=token_ids()
    )
    assert len(reports) == 18
    for own, _, found in seen["solved"]:
        if own.endswith("fc2"):
            assert found.levels[5] == 1


def test_training_flags_come_back():
    model = build("llama").train()
    model.model.norm.eval()
    quantize_model(model, BaqConfig(**CONFIG), sequences=token_ids())
    assert model.training
    assert not model.model.norm.training
    assert model.model.layers[0].self_attn.q_proj.training
    model = build("llama")
    quantize_model(model, BaqConfig(solver="rtn", **CONFIG))
    assert not any(module.training for module in model.modules())


def test_weights_that_are_not_finite_are_refused_before_any_work(seen):
    model = build("llama")
    model.model.layers[2].mlp.up_proj.weight.data[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight holds inf or NaN"):
        quantize_model(model, BaqConfig(**CONFIG), sequences=token_ids())
    assert seen["measured"] == []


def test_activations_that_are_not_finite_are_told_by_name_and_sequence():
    model, sequences = build("llama"), token_ids()
    model.get_input_embeddings().weight.data[49] = 1e30
    sequences[2][0, 4] = 49
    for ids in (*sequences[:2], *sequences[3:]):
        ids[ids == 49] = 3
    model.model.layers[1].input_layernorm.weight.data.fill_(3e38)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj, calibration sequence 0"):
        quantize_model(model, BaqConfig(**CONFIG), sequences=sequences)


def test_too_little_text_is_told_and_none_refused():
    with pytest.warns(UserWarning, match="3 tokens are few .* 24 inputs"):
        quantize_model(build("llama"), BaqConfig(**CONFIG), sequences=[torch.tensor([[3, 4, 5]])])
    for nothing in ([], [torch.zeros(1, 0, dtype=torch.int64)]):
        with pytest.raises(ValueError, match="no tokens to calibrate with"):
            quantize_model(build("llama"), BaqConfig(**CONFIG), sequences=nothing)


def test_solver_error_names_the_module(monkeypatch):
    def fails(*args):
        raise ValueError("it is singular")

    monkeypatch.setattr(calibrate, "solve", fails)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj: it is singular"):
        quantize_model(build("llama"), BaqConfig(**CONFIG), sequences=token_ids())


def test_one_bar_tells_the_block_and_the_time_left(capsys):
    quantize_model(build("llama"), BaqConfig(**CONFIG), sequences=token_ids())
    shown = capsys.readouterr().err
    assert "measuring model.layers.0 (1 of 3)" in shown
    assert "quantizing model.layers.2 (3 of 3)" in shown
    assert "100%" in shown.rsplit("\r", 1)[-1]


@pytest.mark.slow
def test_memory_is_that_of_one_block():
    program = str(Path(__file__).parent / "calibrate_memory.py")
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=500, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    # what the allocator keeps apart
    assert figures["extra"] < figures["bound"] + 8 < figures["all blocks"] / 5
