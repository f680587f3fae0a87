"""The peers of the quantization benchmark are what they are said to be, and bits add up."""

import itertools

import pytest
import quantization_methods
import quantization_quality
import torch
from _gptq_reference import gptq_reference, grid, nearest
from quantization_methods import file_bits, reference, uniform_bits
from quantization_subjects import Subject
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, OPTConfig
from transformers import OPTForCausalLM as Opt

VARIANTS = [
    {"act_order": act, "clip": clip, "group": group}
    for act, clip, group in itertools.product((False, True), (False, True), (0, 8))
]


def problem(rows=6, columns=24, tokens=200):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs


def output_error(weight, quantized, gram):
    error = quantized - weight
    return float(((error @ gram) * error).sum())


def test_grid_passes_through_zero_and_holds_all_weights():
    weight = torch.tensor([[-1.0, 0.0, 2.0], [0.5, 1.0, 3.0], [0.0, 0.0, 0.0]])
    step, zero = grid(weight, 2, clip=False)
    torch.testing.assert_close(step, torch.tensor([[1.0], [1.0], [2 / 3]]).half().float())
    assert zero.tolist() == [[1.0], [0.0], [2.0]]
    assert nearest(weight, step, zero, 2).tolist() == [[-1.0, 0.0, 2.0], [0.0, 1.0, 3.0], [0.0] * 3]


def test_search_of_the_range_loses_no_more():
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = 4
    losses = [
        (gptq_reference(weight, None, 2, clip=clip) - weight).square().sum(1)
        for clip in (False, True)
    ]
    assert (losses[1] <= losses[0]).all()
    assert losses[1].sum() < 0.9 * losses[0].sum()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_reference_is_rounding_to_nearest_without_correlations(options):
    weight, _ = problem()
    gram = torch.diag(torch.rand(24, generator=torch.Generator().manual_seed(2)) + 0.5)
    found = gptq_reference(weight, gram, 3, **options)
    torch.testing.assert_close(found, gptq_reference(weight, None, 3, **options))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_reference_beats_rounding_to_nearest_and_stays_on_its_grid(options):
    weight, gram = problem()
    found = gptq_reference(weight, gram, 3, **options)
    rounded = gptq_reference(weight, None, 3, **options)
    assert output_error(weight, found, gram) < 0.9 * output_error(weight, rounded, gram)
    for before, after in zip(
        weight.split(options["group"] or 24, 1), found.split(options["group"] or 24, 1), strict=True
    ):
        torch.testing.assert_close(after, nearest(after, *grid(before, 3, options["clip"]), 3))


def test_act_order_is_the_order_of_falling_input_energy():
    weight, gram = problem()
    order = gram.diagonal().argsort(descending=True)
    sorted_first = gptq_reference(weight[:, order], gram[order][:, order], 3)[:, order.argsort()]
    found = gptq_reference(weight, gram, 3, act_order=True)
    torch.testing.assert_close(found, sorted_first)
    assert not torch.equal(found, gptq_reference(weight, gram, 3))


def test_reference_makes_columns_without_input_zero():
    weight, gram = problem()
    gram[3] = gram[:, 3] = 0
    assert (gptq_reference(weight, gram, 4)[:, 3] == 0).all()


def test_bits_count_steps_and_zero_points():
    weights = [torch.zeros(10, 128), torch.zeros(20, 96)]
    assert uniform_bits(weights, 2, 0, 2) == 2 + 30 * 18 / 3200
    # 96 columns are two groups of 64, the second not full
    assert uniform_bits(weights, 3, 64, 16) == 3 + (20 + 40) * 32 / 3200


def test_bits_of_a_file_are_those_of_the_quantized_modules(tmp_path):
    tensors = {
        "layer.planes": torch.zeros(40, 2, dtype=torch.uint8),
        "layer.levels": torch.zeros(16, dtype=torch.uint8),
        "layer.ranges": torch.zeros(10, 2, dtype=torch.int16),
        "layer.clip": torch.zeros(9, dtype=torch.int16),
        "layer.bias": torch.zeros(10),
        "embeddings.weight": torch.zeros(100, 16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert file_bits(tmp_path, 160) == 8 * (80 + 16 + 40 + 18) / 160


TINY = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ),
    "opt": lambda: Opt(
        OPTConfig(
            vocab_size=50,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
        )
    ),
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    ),
}


@pytest.mark.parametrize("kind", TINY)
def test_block_by_block_gives_each_layer_the_inputs_of_the_quantized_part(kind, monkeypatch):
    torch.manual_seed(0)
    model = TINY[kind]().eval()

    class Tiny(Subject):
        def load(self, folder=None, **options):
            return model

        def calibration(self):
            return [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12]]

    grams, order = {}, []

    def note(weight, gram, bits, **options):
        name = next(n for n, p in model.named_parameters() if p.data_ptr() == weight.data_ptr())
        grams[name.removesuffix(".weight")] = gram.clone()
        order.append(name)
        return gptq_reference(weight, None, bits)

    monkeypatch.setattr(quantization_methods, "gptq_reference", note)
    found = reference(Tiny(), 4)
    names = Tiny().targets(model).names
    assert sorted(grams) == sorted(names)
    assert len(order) == len(names)
    # a layer's inputs depend on those before it alone: the finished model gives the same
    seen = dict.fromkeys(names, 0)
    for name in names:

        def add(_, given, name=name):
            rows = given[0].flatten(0, -2)
            seen[name] = seen[name] + rows.T @ rows

        model.get_submodule(name).register_forward_pre_hook(add)
    with torch.no_grad():
        for batch in Tiny().batches():
            assert len({len(row) for row in batch.tolist()}) == 1
            model(input_ids=batch)
    for name in names:
        torch.testing.assert_close(seen[name], grams[name], rtol=1e-4, atol=1e-5)
    assert found.bits > 4


def test_report_puts_ours_at_the_same_bits_beside_a_peer(monkeypatch):
    shared = {"model": "llama", "weights": "abc", "seconds": "1.0"}
    shared |= dict.fromkeys(quantization_quality.MEASURES, "")
    lines = [
        shared | {"method": "GPTQ", "bits": "2", "true_bits": "2.0594", "perplexity": "3.8"},
        shared | {"method": "BAQ", "bits": "2.0594", "true_bits": "2.05", "perplexity": "3.7"},
        shared | {"method": "BAQ", "bits": "2.5", "true_bits": "2.4999", "perplexity": "3.6"},
        # an earlier figure of the same cell and one of another training do not count
        shared | {"method": "GPTQ", "bits": "2", "true_bits": "2.0594", "perplexity": "3.75"},
    ]
    old = shared | {
        "weights": "old",
        "method": "RTN",
        "bits": "2",
        "true_bits": "2",
        "perplexity": "1",
    }
    monkeypatch.setattr(quantization_quality, "read", lambda path: [old, *lines])
    table = quantization_quality.report("llama")
    assert "| 2 | GPTQ | 2.059 | 3.7500 | 2.050 | 3.7000 | 1.0 |" in table
    assert "| 2.5 | BAQ | 2.500 | 3.6000 |  |  | 1.0 |" in table
    assert "RTN" not in table
    assert table.count("\n| 2 |") == 1
    cells = [cell.bits for cell in quantization_quality.our_cells("llama", lines)]
    # ours, then the authors' allocation and one width at whole bits, and three more at two
    assert cells == [2, 2.0594, 2.5, 3, 4, *(2, 3, 4) * 2, *(2, 3) * 3]
