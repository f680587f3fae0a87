"""`softext train`: the words go to the trainer as they are."""

import pytest

from hf_softext.cli import train


def test_causal_lm_is_trained_and_reported(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 30, encoding="utf-8")
    sizes = '{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, '
    sizes += '"num_attention_heads": 2, "num_key_value_heads": 2}'
    words = ["--model_type", "llama", "--config_overrides", sizes, "--data", str(text)]
    words += ["--output_dir", str(tmp_path / "out"), "--length", "40", "--test_factors", "1", "2"]
    words += ["--max_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true"]
    words += ["--attention", "softplus", "--passkey_samples", "1", "--save_strategy", "no"]
    train.causal_lm(words)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-3:-1]] == ["40 tokens", "80 tokens"]
    assert lines[-1] == f"saved in {tmp_path / 'out'}"
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(FileExistsError, match="output_dir"):
        train.causal_lm(words)
