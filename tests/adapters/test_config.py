"""What a config says, and what it refuses."""

import copy
import json
import pickle

import pytest
from peft import PeftConfig, PeftType
from peft.mapping import get_peft_config

from hf_softext.adapters.snnk.config import SnnkConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_features": 0}, "num_features=0"),
        ({"num_features": -3}, "num_features=-3"),
        ({"num_features": 2.5}, "num_features=2.5"),
        ({"num_features": True}, "num_features=True"),
        ({"num_features": 7, "kernel": "cos"}, "multiple of 2"),
        ({"kernel": "relo"}, "kernel='relo'.*mean 'relu'"),
        ({"kernel": None}, "kernel=None"),
        ({"kernel": ["relu"]}, "kernel="),
        ({"orthogonal": "no"}, "orthogonal='no'"),
        ({"save_projection": "false"}, "save_projection='false'"),
        ({"init_weights": 1}, "init_weights=1"),
        ({"placement": "beside"}, "placement='beside'"),
        ({"down_sample": 0}, "down_sample=0"),
        ({"floor": float("nan")}, "floor=nan"),
        ({"floor": "low"}, "floor='low'"),
        ({"floor": True}, "floor=True"),
        ({"floor": -5.0, "kernel": "linear"}, "only kernel='relu'"),
        ({"normalize": 0}, "normalize=0"),
        ({"normalize": -1.0}, "normalize=-1.0"),
        ({"normalize": "row"}, "normalize='row'"),
        ({"normalize": True}, "normalize=True"),
        ({"normalize": [1.0]}, "normalize="),
        ({"projection_seed": 1.5}, "projection_seed=1.5"),
        ({"projection_seed": 2**70}, "projection_seed="),
        ({"layers_pattern": "h"}, "needs layers_to_transform"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "needs a list"),
        ({"task_type": "SEQ"}, "task type"),
    ],
    ids=str,
)
def test_bad_values_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        SnnkConfig(**given)


def test_lengths():
    lengths = {
        ("relu", "auto"): None,
        ("linear", "auto"): None,
        ("cos", "auto"): 1.0,
        ("sin", "auto"): 1.0,
        ("cos", None): None,
        ("relu", "unit"): 1.0,
        ("linear", 2.5): 2.5,
    }
    for (kernel, normalize), length in lengths.items():
        config = SnnkConfig(kernel=kernel, normalize=normalize)
        assert config.length == length
        assert config.mergeable == (kernel == "linear" and length is None)


def test_a_config_comes_back_from_its_file(tmp_path):
    config = SnnkConfig(
        num_features=8,
        kernel="cos",
        placement="parallel",
        down_sample=3,
        orthogonal=False,
        normalize=2.0,
        projection_seed=5,
        save_projection=False,
        target_modules=["query", "value"],
        layers_to_transform=[0],
        task_type="SEQ_CLS",
    )
    assert config.peft_type is PeftType.SNNK
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "SNNK"
    for kind in (SnnkConfig, PeftConfig):
        again = kind.from_pretrained(str(tmp_path))
        assert type(again) is SnnkConfig
        assert again == config
    assert get_peft_config(saved) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_the_file_does_not_depend_on_how_python_orders_a_set(tmp_path):
    names = [f"layer{number}" for number in range(20)]
    SnnkConfig(target_modules=names[::-1], exclude_modules=names).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == saved["exclude_modules"] == sorted(names)


def test_what_a_newer_release_adds_is_left_out_with_a_warning(tmp_path):
    SnnkConfig(num_features=8).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new_thing": 1}))
    with pytest.warns(UserWarning, match="new_thing"):
        assert SnnkConfig.from_pretrained(str(tmp_path)).num_features == 8
