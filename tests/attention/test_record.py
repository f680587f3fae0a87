"""A saved model says which attention it ran, whichever way it was set up and saved."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import hf_softext
from tests.cases import CASES, NAMES, Case
from tests.models import Model, model

LLAMA, CLIP = model("llama"), model("clip")


def saved(built: Any, path: Path) -> dict[str, Any]:
    built.save_pretrained(path)
    return json.loads((path / "config.json").read_text())


def reload(row: Model, path: Path) -> Any:
    return getattr(hf, row.model_class).from_pretrained(path).eval()


def assert_same_function(row: Model, built: Any, again: Any) -> None:
    assert again.config._attn_implementation == built.config._attn_implementation
    for before, after in zip(
        row.run(built, row.inputs("left")), row.run(again, row.inputs("left")), strict=True
    ):
        assert torch.equal(before, after)


def warns_of_swap(messages: Any) -> list[str]:
    return [str(w.message) for w in messages if "replaces the attention" in str(w.message)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [LLAMA, model("bert")], ids=lambda row: row.name)
def test_save_after_a_plain_forward(row: Model, name: str, tmp_path: Path) -> None:
    built = row.build(name)
    row.run(built, row.inputs())
    assert saved(built, tmp_path)["attn_implementation"] == name
    assert_same_function(row, built, reload(row, tmp_path))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("row", [LLAMA, model("t5"), CLIP], ids=lambda row: row.name)
def test_save_after_apply_without_a_forward(row: Model, case: Case, tmp_path: Path) -> None:
    built = hf_softext.apply_attention(row.build(), case.name, **case.other)
    written = saved(built, tmp_path)
    assert written["attn_implementation"] == case.name
    assert written["softext"] == {"attention": case.name, **case.other}
    again = reload(row, tmp_path)
    assert again.config.softext == built.config.softext
    assert_same_function(row, built, again)


def test_save_records_every_default(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(LLAMA.build(), "softplus_reweighted")
    defaults = {"power": 15.0, "shift": 1.0, "free_rows": 3, "degenerate": "softplus"}
    assert saved(built, tmp_path)["softext"] == {"attention": "softplus_reweighted", **defaults}


def test_second_generation_is_the_same(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(LLAMA.build(), "softplus_reweighted", power=3)
    first = saved(built, tmp_path / "a")
    again = reload(LLAMA, tmp_path / "a")
    LLAMA.run(again, LLAMA.inputs())
    assert saved(again, tmp_path / "b") == first


def test_trainer_checkpoint(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(LLAMA.build(), "softplus_reweighted", power=3)
    ids = LLAMA.inputs()["input_ids"]
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    hf.Trainer(built, arguments, train_dataset=rows).train()
    built.eval()
    assert_same_function(LLAMA, built, reload(LLAMA, tmp_path / "checkpoint-3"))
    again = reload(LLAMA, tmp_path / "checkpoint-2")
    assert (again.config._attn_implementation, again.config.softext["power"]) == (
        "softplus_reweighted",
        3,
    )


@pytest.mark.parametrize("row", [LLAMA, CLIP], ids=lambda row: row.name)
def test_switching_back_is_saved(row: Model, tmp_path: Path) -> None:
    built = hf_softext.apply_attention(row.build(), "softplus")
    row.run(built, row.inputs())
    built.set_attn_implementation("sdpa")
    assert saved(built, tmp_path).get("attn_implementation", "sdpa") == "sdpa"
    assert_same_function(row, built, reload(row, tmp_path))


def test_switching_on_to_another_method_is_saved(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(LLAMA.build(), "softplus", scale=2.5)
    built.set_attn_implementation("stablemax")
    with pytest.warns(UserWarning, match="'softplus', but 'stablemax' runs"):
        LLAMA.run(built, LLAMA.inputs())
    assert saved(built, tmp_path)["attn_implementation"] == "stablemax"
    assert_same_function(LLAMA, built, reload(LLAMA, tmp_path))


def test_sub_configs_with_different_attention(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(CLIP.build(), "softplus")
    built.set_attn_implementation({"text_config": "stablemax", "vision_config": "softplus"})
    CLIP.run(built, CLIP.inputs())
    saved(built, tmp_path)
    again = reload(CLIP, tmp_path)
    assert again.config.text_config._attn_implementation == "stablemax"
    assert again.config.vision_config._attn_implementation == "softplus"
    assert_same_function(CLIP, built, again)


def test_one_tower_of_a_composite_model(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(CLIP.build(), "softplus_reweighted", power=3)
    built.text_model.set_attn_implementation("sdpa")
    CLIP.run(built, CLIP.inputs())
    saved(built, tmp_path)
    again = reload(CLIP, tmp_path)
    assert (
        again.config.text_config._attn_implementation
        == built.config.text_config._attn_implementation
        == "sdpa"
    )
    assert again.config.vision_config._attn_implementation == "softplus_reweighted"
    assert_same_function(CLIP, built, again)


@pytest.mark.parametrize("row", [LLAMA, CLIP], ids=lambda row: row.name)
def test_copies_of_a_config_go_their_own_way(row: Model) -> None:
    built = hf_softext.apply_attention(row.build(), "softplus")
    row.run(built, row.inputs())
    copied = copy.deepcopy(built.config)
    assert copied.to_dict()["attn_implementation"] == "softplus"
    copied._attn_implementation = "stablemax"
    assert copied.to_dict()["attn_implementation"] == "stablemax"
    assert built.config.to_dict()["attn_implementation"] == "softplus"
    built.set_attn_implementation("sdpa")
    assert copied.to_dict()["attn_implementation"] == "stablemax"


def test_copied_model_is_saved_as_it_runs(tmp_path: Path) -> None:
    built = hf_softext.apply_attention(LLAMA.build(), "softplus")
    copied = copy.deepcopy(built)
    copied.set_attn_implementation("stablemax")
    LLAMA.run(copied, LLAMA.inputs())
    assert saved(copied, tmp_path / "copy")["attn_implementation"] == "stablemax"
    assert saved(built, tmp_path / "original")["attn_implementation"] == "softplus"


@pytest.mark.parametrize("row", [LLAMA, CLIP], ids=lambda row: row.name)
def test_config_survives_pickle(row: Model) -> None:
    config = hf_softext.apply_attention(row.build(), "stablemax", scale=2.5).config
    again = pickle.loads(pickle.dumps(config))
    assert again.to_dict() == config.to_dict()
    again._attn_implementation = "softplus"
    assert again.to_dict()["attn_implementation"] == "softplus"


def test_config_methods_still_work(tmp_path: Path) -> None:
    config = hf_softext.apply_attention(LLAMA.build(), "softplus_reweighted", power=3).config
    assert json.loads(config.to_json_string())["attn_implementation"] == "softplus_reweighted"
    assert config.to_diff_dict()["softext"]["power"] == 3
    assert "softplus_reweighted" in repr(config)
    assert config == copy.deepcopy(config)
    config.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.from_pretrained(tmp_path))
    assert again.config._attn_implementation == "softplus_reweighted"
    assert again.config.softext["power"] == 3


def test_config_route_from_pretrained(tmp_path: Path) -> None:
    LLAMA.build().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="replaces the attention"):
        config = hf_softext.apply_attention(
            hf.AutoConfig.from_pretrained(tmp_path), "stablemax", scale=0.7
        )
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config).eval()
    assert_same_function(
        LLAMA, hf_softext.apply_attention(LLAMA.build(), "stablemax", scale=0.7), loaded
    )


def test_first_swap_of_pretrained_weights_warns_once(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    LLAMA.build().save_pretrained(tmp_path)
    for name in ("softplus", "stablemax"):
        loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
        LLAMA.run(loaded, LLAMA.inputs())
        LLAMA.run(loaded, LLAMA.inputs())
        hf_softext.apply_attention(hf.AutoModelForCausalLM.from_pretrained(tmp_path), name)
    messages = warns_of_swap(recwarn)
    assert len(messages) == 1
    assert str(tmp_path) in messages[0]
    assert "softplus" in messages[0]


def test_trained_with_the_method_does_not_warn(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    built = LLAMA.build("softplus")
    LLAMA.run(built, LLAMA.inputs())
    built.save_pretrained(tmp_path)
    LLAMA.run(reload(LLAMA, tmp_path), LLAMA.inputs())
    assert not warns_of_swap(recwarn)


def test_without_the_package_the_load_fails_loudly(tmp_path: Path) -> None:
    hf_softext.apply_attention(LLAMA.build(), "softplus_reweighted").save_pretrained(tmp_path)
    code = (
        f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "ValueError" in result.stderr
    assert "softplus_reweighted" in result.stderr
