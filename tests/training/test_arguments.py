"""A YAML file first, the command line over it."""

import pytest

from hf_softext import AdoptionArguments
from hf_softext.training.arguments import parse_arguments


def test_command_line_overrides_the_file_which_overrides_the_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("attention: softplus\nmax_steps: 7\nlearning_rate: 1.0e-3\n", encoding="utf-8")
    words = [str(path), "--max_steps", "9", "--output_dir", str(tmp_path)]
    args = parse_arguments(AdoptionArguments, words)
    assert (args.attention, args.max_steps, args.learning_rate) == ("softplus", 9, 1e-3)
    assert args.per_device_train_batch_size == AdoptionArguments().per_device_train_batch_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "'learning_rat'. Did you mean 'learning_rate'"),
        ("- attention", "not a mapping"),
        ("model: [a\nloss: ce", r"recipe.yaml, line 2 is not YAML: expected"),
    ],
)
def test_a_wrong_file_is_named(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        parse_arguments(AdoptionArguments, [str(path)])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"CONFIG 'nosuch.yaml' is no file"):
        parse_arguments(AdoptionArguments, ["nosuch.yaml"])
