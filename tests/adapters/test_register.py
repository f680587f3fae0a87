"""SNNK is a method of peft, whichever import comes first."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from hf_softext.adapters.register import register_snnk
from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.model import SnnkModel

CHECK = """
import peft
assert peft.PeftType("SNNK") is peft.PeftType.SNNK
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
assert PEFT_TYPE_TO_TUNER_MAPPING["SNNK"].__name__ == "SnnkModel"
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_softext",
        "import peft\nimport hf_softext",
        "import hf_softext.adapters",
        "from hf_softext.adapters.snnk.layer import SnnkAdapterLinear",
    ],
)
def test_it_is_there_in_a_fresh_process(imports):
    done = subprocess.run(
        [sys.executable, "-c", imports + CHECK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_registering_again_changes_nothing():
    before = list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING)
    assert register_snnk() is register_snnk() is PeftType.SNNK
    assert (list(PeftType), PEFT_TYPE_TO_TUNER_MAPPING) == before
    assert PEFT_TYPE_TO_TUNER_MAPPING["SNNK"] is SnnkModel


def test_the_member_is_like_any_other():
    member = PeftType.SNNK
    assert PeftType("SNNK") is PeftType["SNNK"] is member
    assert member in list(PeftType)
    assert list(PeftType).count(member) == 1
    assert member.name == member.value == member == "SNNK"
    assert hash(member) == hash("SNNK")
    assert repr(member) == repr(PeftType.LORA).replace("LORA", "SNNK")
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert json.dumps(member) == '"SNNK"'
    with pytest.raises(ValueError, match="is not a valid PeftType"):
        PeftType("SNNKK")


def test_a_name_that_another_package_took_is_not_overwritten(monkeypatch):
    other = type("SnnkConfig", (), {"__module__": "peft.tuners.snnk"})
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.SNNK, other)
    with pytest.raises(ValueError, match=r"'SNNK' is taken by 'peft.tuners.snnk'"):
        register_snnk()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SNNK] is other is not SnnkConfig
