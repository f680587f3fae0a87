"""Defaults of the training of an adapter."""

import pytest
import transformers as hf

from hf_softext.training.adapter.arguments import parse_adapter_arguments
from hf_softext.training.adapter.config import adapter_config
from hf_softext.training.adapter.run import train_adapter
from tests.training.adapter.work import language_model, running
from tests.training.conftest import save_model


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ([], 1e-2),
        (["--adapter", "SNNK", "--task", "causal-lm"], 1e-2),
        (["--adapter", "lora"], 1e-3),
        (["--adapter", "lora", "--learning_rate", "3e-4"], 3e-4),
    ],
)
def test_the_learning_rate_is_that_of_the_adapter(words, rate, tmp_path):
    words = [*words, "--output_dir", str(tmp_path), "--use_cpu", "true"]
    assert parse_adapter_arguments(words).learning_rate == rate


@pytest.mark.parametrize(
    ("adapter", "keywords", "message"),
    [
        (
            "lora",
            {"rank": 4},
            r"lora has no 'rank'. Most used: r, lora_alpha.*mean 'r'\? Known: r,",
        ),
        ("vera", {"vera_drop": 0.1}, r"Most used: r, vera_dropout.*mean 'vera_dropout'"),
        (
            "prefix_tuning",
            {},
            r"adapter='prefix_tuning' needs keywords.*\"num_virtual_tokens\": 20",
        ),
    ],
)
def test_keywords_of_an_adapter_are_named(adapter, keywords, message):
    with pytest.raises(ValueError, match=message):
        adapter_config(adapter, keywords)


def test_an_adapter_is_tested_at_the_length_of_its_training(tmp_path):
    words = ["--task", "causal-lm", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    args = parse_adapter_arguments(words)
    assert (args.test_factors, args.passkey_samples) == ([1], 0)


# peft asks a model for a name that transformers is about to drop
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", ["learned", "rotary"])
def test_a_window_fits_the_positions_of_the_model(kind, tmp_path, capsys):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 42}
    sizes |= {"max_position_embeddings": 24, "pad_token_id": 0}
    if kind == "learned":
        config = hf.OPTConfig(**sizes, word_embed_proj_dim=16, ffn_dim=16)
        model = hf.OPTForCausalLM(config)
    else:
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, intermediate_size=16))
    folder = save_model(model, tmp_path / "tiny")
    common = {"adapter": "lora", "max_steps": 1, "test_factors": [1]}
    text = running(tmp_path)
    given = {**common, "length": None, "disable_tqdm": False}
    result = train_adapter(language_model(tmp_path / "out", folder, text, **given))
    assert [*result.losses] == [24]
    assert "loss by length: 100%" in capsys.readouterr().err
    long = language_model(tmp_path / "long", folder, text, **common, length=25)
    if kind == "learned":
        with pytest.raises(ValueError, match="length=25 is above the 24 positions"):
            train_adapter(long)
    else:
        with pytest.warns(UserWarning, match="length=25 is above .*max_position_embeddings=24"):
            train_adapter(long)
