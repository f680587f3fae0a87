"""BaqConfig: what it refuses, what it writes, what it reads."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.quantizers.auto import AutoQuantizationConfig

from hf_softext.quantization.baq.config import FORMAT_VERSION, BaqConfig
from hf_softext.quantization.baq.register import register_baq
from hf_softext.quantization.baq.weight import Settings
from tests.quantization.checkpoints import dense

PLANES = {"model.layers.0.q_proj": 12, "model.layers.0.k_proj": 0}


def stored(**changes):
    config = BaqConfig(bits=2.5, modules_to_not_convert=["o_proj"], bit_range=(0, 6))
    config.module_planes = dict(PLANES)
    config.calibration = {"sequences": 2, "tokens": 64, "sha256": "ab"}
    return config.to_dict() | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, r"bits=0: give a finite number above 0"),
        ({"bits": -1.5}, r"bits=-1.5"),
        ({"bits": float("nan")}, r"bits=nan"),
        ({"bits": float("inf")}, r"bits=inf"),
        ({"bits": "3"}, r"bits='3'"),
        ({"bits": True}, r"bits=True"),
        ({"bits": 9, "allocation": "paper"}, r"bits=9: with allocation='paper'.*1 to 8"),
        ({"bits": 2.5, "allocation": "uniform"}, r"bits=2.5: .*use allocation='model'"),
        ({"bits": 3, "allocation": "uniform", "bit_range": (4, 8)}, r"bits=3: .*does not allow"),
        ({"bit_range": (3, 2)}, r"bit_range=\(3, 2\): give the fewest and the most"),
        ({"bit_range": (1, 9)}, r"bit_range=\(1, 9\)"),
        ({"bit_range": (0, 0)}, r"bit_range=\(0, 0\)"),
        ({"bit_range": 4}, r"bit_range=4"),
        ({"bit_range": (1, 2.5)}, r"bit_range"),
        (
            {"allocation": "global"},
            r"allocation='global': use one of auto, model, layer",
        ),
        ({"allocation": ["model"]}, r"allocation=\['model'\]"),
        ({"solver": "awq"}, r"solver='awq': use one of gptq, rtn"),
        ({"nsamples": 0}, r"nsamples=0: give a whole number, 1 or more"),
        ({"nsamples": 2.0}, r"nsamples=2.0"),
        ({"seqlen": -4}, r"seqlen=-4"),
        ({"block_size": False}, r"block_size=False"),
        ({"refine": -1}, r"refine=-1: give a whole number, 0 or more"),
        ({"seed": "0"}, r"seed='0'"),
        ({"damp": 0}, r"damp=0"),
        ({"act_order": 1}, r"act_order=1: use True or False"),
        ({"clip": "yes"}, r"clip='yes'"),
        ({"modules_to_not_convert": "lm_head"}, r"modules_to_not_convert='lm_head'.*a list"),
        ({"modules_to_not_convert": [""]}, r"modules_to_not_convert"),
        ({"work_dir": 3}, r"work_dir=3"),
        ({"work_dir": ""}, r"work_dir=''"),
        ({"bit": 3}, r"bit=3 is no argument of BaqConfig; did you mean 'bits'\?"),
        ({"frobnicate": 1}, r"frobnicate=1 is no argument of BaqConfig; use one of bits, "),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BaqConfig(**arguments)


def test_settings_are_plain_values():
    config = BaqConfig(bits=3, bit_range=[2, 7], damp=1, allocation="layer", clip=False)
    assert config.settings() == Settings(
        bits=3.0, bit_range=(2, 7), allocation="layer", clip=False, damp=1.0
    )
    assert BaqConfig(allocation="model").settings() == Settings()


def test_who_competes_depends_on_whether_a_model_generates():
    for name, allocation in (("llama", "model"), ("bert", "layer")):
        config = BaqConfig()
        config.resolve(dense(name))
        assert config.allocation == allocation
    config = BaqConfig(allocation="layer")
    config.resolve(dense("llama"))
    assert config.allocation == "layer"


def test_survives_json():
    values = stored()
    read = BaqConfig.from_dict(json.loads(json.dumps(values)))
    assert read.to_dict() == values
    assert read.to_diff_dict() == values
    assert read.bit_range == (0, 6)
    assert read.module_planes == PLANES
    assert read == BaqConfig.from_dict(values)
    assert read != BaqConfig.from_dict(values | {"bits": 3.5})
    assert dict(read) == values
    assert json.loads(read.to_json_string()) == values


def test_is_found_by_its_name():
    register_baq()
    register_baq()
    assert isinstance(AutoQuantizationConfig.from_dict(stored()), BaqConfig)


@pytest.mark.parametrize(
    "imports",
    [
        "from hf_softext import size_report, BaqQuantizer; import transformers",
        "import transformers; transformers.PreTrainedModel; import hf_softext",
    ],
)
def test_is_known_whatever_is_imported_first(imports):
    code = (
        f"{imports}; transformers.PreTrainedModel; import transformers.quantizers.auto as auto; "
        "print(auto.AUTO_QUANTIZER_MAPPING['baq'].__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "BaqQuantizer\n", done.stderr


def test_data_and_machine_are_never_written():
    config = BaqConfig(dataset=["secret text"], tokenizer="secret/tokenizer", work_dir="/secret")
    assert "secret" not in json.dumps(config.to_dict()) + str(config)
    assert config.dataset == ["secret text"]
    assert BaqConfig(work_dir=Path("x")).work_dir == Path("x")


def test_nothing_of_a_run_is_read_from_a_file():
    values = stored(dataset="/etc/passwd", tokenizer="evil/repository", work_dir="/tmp/evil")
    read = BaqConfig.from_dict(values)
    assert (read.dataset, read.tokenizer, read.work_dir) == (None, None, None)


def test_keys_of_a_newer_release_are_left_out():
    values = stored(group_size=64, trust_remote_code=True, device_map="auto")
    read = BaqConfig.from_dict(values)
    assert read.to_dict() == stored()
    assert not {"group_size", "trust_remote_code", "device_map"} & set(vars(read))


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_another_format_is_refused(version):
    with pytest.raises(
        ValueError, match=rf"format_version={version!r}: .*reads.* {FORMAT_VERSION}\."
    ):
        BaqConfig.from_dict(stored(format_version=version))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module_planes": {"a": -1}}, "module_planes"),
        ({"module_planes": {"a": "1"}}, "module_planes"),
        ({"module_planes": ["a"]}, "module_planes"),
        ({"calibration": "none"}, "calibration='none'"),
        ({"checksums": "abc"}, "checksums"),
        ({"checksums": 7}, "checksums"),
        ({"quant_method": "gptq"}, "quant_method='gptq' is not 'baq'"),
        ({"bits": "many"}, "bits='many'"),
    ],
    ids=str,
)
def test_damaged_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        BaqConfig.from_dict(stored(**changes))


def test_copies_share_the_data_and_nothing_else():
    config = BaqConfig(dataset=[[1, 2]], tokenizer=object())
    config.module_planes = dict(PLANES)
    twin = copy.deepcopy(config)
    assert twin == config
    assert twin.dataset is config.dataset
    assert twin.tokenizer is config.tokenizer
    twin.module_planes["more"] = 1
    assert config.module_planes == PLANES
