"""What `adapters.py` compares, and what it tries of SNNK first."""

from typing import Any

from _adapter_methods import ALL, HEAD, OUTPUTS, QUERIES, Method


def _snnk(label: str, features: int, kernel: str = "relu", **given: Any) -> Method:
    options = {"num_features": features, "kernel": kernel, **given.pop("options", {})}
    return Method(label, f"SNNK {kernel}", given.pop("centre", -4), options=options, **given)


PARALLEL, BESIDE = {"placement": "parallel"}, {"parallel": True}
# best of what was tried on the language model
BEST = {**PARALLEL, "floor": -5.0}
METHODS = [
    Method(HEAD, HEAD, -5),
    *(_snnk(f"SNNK relu, {m}", m) for m in (4, 8, 16, 64)),
    *(Method(f"bottleneck, {b}", "bottleneck", -5, options={"width": b}) for b in (2, 8, 32)),
    *(Method(f"LoRA q v, {r}", "LoRA", -5, QUERIES, {"r": r}) for r in (1, 8, 16)),
    *(Method(f"LoRA all, {r}", "LoRA", -5, ALL, {"r": r}) for r in (1, 8, 16)),
    *(_snnk(f"SNNK relu parallel floor, {m}", m, options=BEST) for m in (4, 12, 16, 64)),
    *(_snnk(f"SNNK linear, {m}", m, "linear") for m in (4, 16)),
    Method("VeRA q v, 256", "VeRA", -3, QUERIES, {"r": 256}),
    # what makes the best SNNK the best, and peers at the same place
    *(_snnk(f"SNNK linear parallel, {m}", m, "linear", options=PARALLEL) for m in (12, 16, 64)),
    *(Method(f"LoRA outputs, {r}", "LoRA", -5, OUTPUTS, {"r": r}) for r in (2, 6, 23)),
    *(
        Method(f"bottleneck parallel, {b}", "bottleneck", -5, options={"width": b, **BESIDE})
        for b in (6, 22)
    ),
    _snnk("SNNK relu parallel, 16", 16, options=PARALLEL),
    _snnk("SNNK relu floor, 16", 16, options={"floor": -5.0}),
]
# what is told apart least is compared less
_TEXTS = [
    *(HEAD, "SNNK relu, 4", "SNNK relu, 16", "SNNK relu, 64", "SNNK relu parallel floor, 16"),
    *("SNNK linear parallel, 16", "SNNK linear parallel, 64"),
    *("bottleneck, 2", "bottleneck, 8", "bottleneck, 32", "VeRA q v, 256"),
    *("LoRA q v, 1", "LoRA q v, 8", "LoRA q v, 16", "LoRA all, 1", "LoRA all, 8", "LoRA all, 16"),
]
COMPARED = {
    **{task: [x for x in METHODS if x.label in _TEXTS] for task in ("clinc150", "banking77")},
    "python": METHODS,
}

# 16 features with relu, one thing changed at a time
_TRIED = [
    _snnk("serial", 16),
    _snnk("V 0, gate 1", 16, start="zero", centre=-5),
    _snnk("unit length", 16, options={"normalize": "unit"}),
    _snnk("parallel at q, v", 16, sites=QUERIES, options={"placement": "parallel"}),
    _snnk("start 0.2", 16, start=0.2),
    _snnk("start normal", 16, start="normal"),
    _snnk("gate rate x 10", 16, gate=10.0, centre=-5),
    _snnk("not orthogonal", 16, options={"orthogonal": False}),
    _snnk("parallel", 16, options={"placement": "parallel"}),
    _snnk("floor -5", 16, options={"floor": -5.0}),
    _snnk("parallel, floor -5", 16, options=BEST),
]
_IN_SHORT = ("serial", "V 0, gate 1", "parallel, floor -5")
EXPLORED = {"clinc150": [x for x in _TRIED if x.label in _IN_SHORT], "python": _TRIED}
