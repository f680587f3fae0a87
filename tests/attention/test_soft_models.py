"""SOFT and SOFT++ through landmarks in whole models."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import hf_softext
from tests.models import LENGTH, PAD, model

VIT, BERT, LLAMA, T5 = (model(name) for name in ("vit", "bert", "llama", "t5"))
both = pytest.mark.parametrize("name", ["soft", "soft_norm"])
LOW_RANK = {"mode": "low_rank", "tie": "query", "landmarks": 4}


def applied(row: Any, name: str, **parameters: Any) -> Any:
    return hf_softext.apply_attention(row.build(), name, **LOW_RANK | parameters)


@both
def test_image_model_on_its_grid(name: str, tmp_path: Path) -> None:
    # 4 x 4 patches and a class token
    built = applied(VIT, name, grid=[4, 4])
    report = hf_softext.verify_attention(built)
    assert len(report.reached) == 2
    out = VIT.run(built, VIT.inputs())[0]
    for other in (applied(VIT, name), applied(VIT, name, mode="exact"), VIT.build()):
        assert (VIT.run(other, VIT.inputs())[0] - out).abs().max() > 1e-3
    built.save_pretrained(tmp_path)
    again = hf.ViTModel.from_pretrained(tmp_path).eval()
    assert again.config.softext == built.config.softext
    assert again.config.softext["grid"] == [4, 4]
    assert torch.equal(VIT.run(again, VIT.inputs())[0], out)
    with pytest.raises(ValueError, match=r"grid=\[5, 5\] has 25 cells, .* 17 tokens"):
        VIT.run(applied(VIT, name, grid=[5, 5]), VIT.inputs())


@both
def test_tied_projections_need_no_flag(name: str) -> None:
    built = hf_softext.apply_attention(VIT.build(), name, mode="low_rank", landmarks=4)
    with pytest.raises(ValueError, match="they differ"):
        VIT.run(built, VIT.inputs())
    for module in built.modules():
        if hasattr(module, "k_proj"):
            module.k_proj.load_state_dict(module.q_proj.state_dict())
    out = VIT.run(built, VIT.inputs())[0]
    hf_softext.apply_attention(built, name, **LOW_RANK)
    torch.testing.assert_close(VIT.run(built, VIT.inputs())[0], out)


@both
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padded_row_of_an_encoder_equals_the_row_alone(name: str, padding: str) -> None:
    built = applied(BERT, name).double()
    inputs = BERT.inputs(padding)
    tokens = slice(PAD, LENGTH) if padding == "left" else slice(0, LENGTH - PAD)
    together = built(**inputs).last_hidden_state[0, tokens]
    alone = {key: tensor[:1, tokens] for key, tensor in inputs.items()}
    torch.testing.assert_close(together, built(**alone).last_hidden_state[0])


@both
def test_training_reaches_every_projection_but_the_keys(name: str) -> None:
    built = applied(BERT, name)
    built(**BERT.inputs("left")).last_hidden_state.square().sum().backward()
    for key, parameter in built.named_parameters():
        if ".self.key." in key:
            assert parameter.grad is None or (parameter.grad == 0).all()
        elif "encoder" in key:
            assert parameter.grad.isfinite().all()
            assert (parameter.grad != 0).any(), key


@both
def test_encoder_compiles_in_one_graph(name: str) -> None:
    inputs = BERT.inputs("left")
    built = applied(BERT, name)
    compiled = BERT.run(torch.compile(built, fullgraph=True, backend="aot_eager"), inputs)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, BERT.run(applied(BERT, name), inputs))


@both
def test_models_without_a_low_rank_form_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"queries see different keys.*Set mode='exact'"):
        LLAMA.run(applied(LLAMA, name), LLAMA.inputs())
    with pytest.raises(ValueError, match=r"a position_bias.*Set mode='exact'"):
        T5.run(applied(T5, name), T5.inputs())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*computed exactly")
        inputs = {key: LLAMA.inputs()[key] for key in ("input_ids", "attention_mask")}
        with pytest.raises(ValueError, match="queries see different keys"):
            applied(LLAMA, name).generate(**inputs, max_new_tokens=2)
