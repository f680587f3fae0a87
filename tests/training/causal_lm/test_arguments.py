"""What the training of a causal language model refuses, and how it says so."""

from pathlib import Path

import pytest

from hf_softext.training.arguments import parse_arguments
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.model import load_tokenizer
from hf_softext.training.causal_lm.run import train_causal_lm
from tests.training.causal_lm.test_run import QUICK

ROOT = Path(__file__).parents[3]


@pytest.fixture
def right(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the king and the queen of the night " * 200, encoding="utf-8")
    return {**QUICK, "output_dir": str(tmp_path / "out"), "data": str(path)}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"attention": "softplux"}, ValueError, r"attention='softplux' .*mean 'softplus'"),
        ({"attention": "softplus", "attention_parameters": '{"scal": 1}'}, ValueError, "'scal'"),
        ({"attention_parameters": '{"power": 3}'}, ValueError, "attention_parameters=.*None"),
        ({"attention_parameters": "power=3"}, ValueError, "attention_parameters='power=3' is not"),
        ({"model_type": "lama"}, ValueError, r"model_type='lama' .*mean 'llama'"),
        ({"model_type": None}, ValueError, "one of model .*not none of them"),
        ({"config": "c"}, ValueError, "not config and model_type"),
        ({"model": "m", "model_type": None}, ValueError, "config_overrides=.*has its sizes"),
        ({"config_overrides": '{"hiden_size": 8}'}, ValueError, r"'hiden_size'.*'hidden_size'"),
        ({"config_overrides": "[1]"}, ValueError, r"config_overrides='\[1\]' must be a JSON obj"),
        ({"config_overrides": '{"vocab_size": 9}'}, ValueError, "vocab_size=9 is below"),
        ({"data": "missing.txt"}, FileNotFoundError, "data='missing.txt'"),
        ({"data": None}, ValueError, "data is missing"),
        ({"output_dir": ""}, ValueError, "output_dir is missing"),
        ({"length": 0}, ValueError, "length=0 must be a whole number of 2 or more"),
        ({"length": 40.5}, ValueError, "length=40.5 must be a whole number"),
        ({"length": 100_000}, ValueError, "too few for one window of length=100000"),
        ({"length": 20, "passkey_share": 0.1}, ValueError, "length=20 is too short for passkey"),
        ({"held_out": 1.0}, ValueError, "held_out=1.0 must be"),
        ({"passkey_share": 1.0}, ValueError, "passkey_share=1.0 must be"),
        ({"test_factors": [0, 1]}, ValueError, r"test_factors=\[0, 1\] must be"),
        ({"passkey_depths": [1.5]}, ValueError, r"passkey_depths=\[1.5\] must be"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments_are_named(given, error, message, right, tmp_path):
    with pytest.raises(error, match=message):
        train_causal_lm(CausalLMArguments(**{**right, **given}))
    assert not list(tmp_path.glob("out*"))


def test_existing_output_and_unknown_key_of_a_file_are_refused(right, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="output_dir="):
        train_causal_lm(CausalLMArguments(**right))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passkey_shar: 0.1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"'passkey_shar'\. Did you mean 'passkey_share'"):
        parse_arguments(CausalLMArguments, [str(recipe)])


def test_the_shipped_recipe_is_complete():
    path = str(ROOT / "trainers" / "configs" / "length_extrapolation.yaml")
    args = parse_arguments(CausalLMArguments, [path, "--use_cpu", "true"])
    args.check()
    assert args.overrides()["hidden_size"] == 96
    assert (args.attention, args.method_parameters()) == ("softplus_reweighted", {})
    assert len(load_tokenizer(args.tokenizer, args.model)) == 257
