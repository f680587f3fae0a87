"""PEFT's own tests on SNNK: a copy of this file, next to them, is what pytest runs.

None of their code is changed. Of each test that runs over a list of methods a copy is made that
runs over the rows below instead; the others, which are about one method of theirs, are left out.
"""

import types
from typing import Any

import pytest

from hf_softext.adapters.snnk.config import SnnkConfig

from . import test_custom_models as theirs
from . import testing_common

SERIAL = {"placement": "serial"}
LINEAR = SERIAL | {"kernel": "linear"}
PARALLEL = LINEAR | {"placement": "parallel"}
# name, model, config class, arguments: as their rows for methods that go into linear layers
ROWS = [
    ("MLP str", "MLP", {"target_modules": "lin0"}),
    ("MLP serial", "MLP", SERIAL),
    ("MLP two", "MLP", SERIAL | {"target_modules": ["lin0", "lin1"]}),
    ("MLP head", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP drawn again", "MLP", {"target_modules": ["lin0"], "save_projection": False}),
    ("MLP parallel up", "MLP", {"placement": "parallel", "down_sample": 3}),
    ("MLP cos", "MLP", SERIAL | {"kernel": "cos", "orthogonal": False}),
    ("MLP linear", "MLP", LINEAR),
    ("MLP linear parallel", "MLP", PARALLEL | {"modules_to_save": ["lin1"]}),
    ("MLP linear up", "MLP", LINEAR | {"down_sample": 3, "target_modules": ["lin0", "lin1"]}),
    ("Conv1D linear parallel", "EmbConv1D", PARALLEL | {"target_modules": ["conv1d"]}),
]
CASES = [
    (f"SNNK {name}", model, SnnkConfig, {"target_modules": ["lin0"]} | given)
    for name, model, given in ROWS
]


def made(**given: Any) -> SnnkConfig:
    """A config that does not start as the identity."""
    return SnnkConfig(init_weights=False, **{"target_modules": ["lin0"]} | given)


def pair(kind: dict[str, Any], first: list[str], second: list[str]) -> tuple[Any, Any]:
    """Two configs, or what they are made of, for two adapters."""
    given = {"init_weights": False} | kind
    return given | {"target_modules": first}, given | {"target_modules": second}


TWO_ACTIVE = [
    (f"SNNK {place} {name}", "snnk", SnnkConfig, *pair(kind, ["lin0"], second))
    for place, second in (("same", ["lin0"]), ("different", ["lin1"]))
    for name, kind in (("relu", {}), ("linear", LINEAR), ("parallel", PARALLEL))
]
HEAD = {"modules_to_save": ["lin1"]}
# by the list that they run over, or where it has no name, by the name of the test
INSTEAD = [
    (theirs.TEST_CASES, CASES),
    (theirs.ALL_PEFT_CONFIG_CLASSES, [SnnkConfig]),
    (theirs.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES, TWO_ACTIVE),
    (
        theirs.MIXED_ADAPTER_TEST_CASES,
        [
            ("SNNK linear and relu", made(**LINEAR), made()),
            ("SNNK parallel and cos", made(**PARALLEL), made(kernel="cos", num_features=8)),
        ],
    ),
]
BY_TEST = {
    "test_mixed_adapter_batches_different_target_layers": [
        ("SNNK", made(), made(target_modules=["lin1"]))
    ],
    "test_mixed_adapter_batches_multiple_modules_to_save": [("SNNK", made(**HEAD), made(**HEAD))],
    "test_mixed_adapter_batches_partly_overlapping_target_layers": [
        ("SNNK", made(), made(target_modules=["lin0", "lin1"]))
    ],
    "test_mixed_adapter_batches_lora_wrong_adapter_name_raises": [("SNNK", made())],
}


def on_snnk(test: Any) -> Any:
    """A copy of a test with our rows, or None if it has nothing that they could replace."""
    marks, replaced = [], False
    for mark in getattr(test, "pytestmark", []):
        rows = BY_TEST.get(test.__name__)
        if mark.name == "parametrize" and rows is None:
            rows = next((ours for known, ours in INSTEAD if mark.args[1] is known), None)
        if mark.name == "parametrize" and rows is not None:
            mark = pytest.mark.parametrize(mark.args[0], rows).mark
            replaced = True
        marks.append(mark)
    if not replaced:
        return None
    copy = types.FunctionType(
        test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__
    )
    copy.__dict__.update(test.__dict__, pytestmark=marks)
    return copy


def subclass_of(base: type) -> type:
    """A subclass with the copies in place of the tests."""
    names = [name for name in dir(base) if name.startswith("test_")]
    body = {name: on_snnk(getattr(base, name)) for name in names}
    return type(f"{base.__name__}OnSnnk", (base,), body)


_theirs = testing_common._skip_if_merging_not_supported


def _skip_if_merging_not_supported(model_id: str, config_cls: Any, config_kwargs: Any) -> None:
    # as they do for their own methods that cannot be merged, there by class
    _theirs(model_id, config_cls, config_kwargs)
    if config_kwargs.get("kernel") != "linear":
        pytest.skip("SNNK merges with kernel='linear' only")


for _module in (theirs, testing_common):
    _module._skip_if_merging_not_supported = _skip_if_merging_not_supported

for _name in (
    "TestPeftCustomModel",
    "TestRequiresGrad",
    "TestMultipleActiveAdapters",
    "TestMixedAdapterBatches",
    # of PEFT 0.21
    "TestPeftFsdpStateDict",
):
    if hasattr(theirs, _name):
        globals()[_name] = subclass_of(getattr(theirs, _name))
