"""Run one model class once and tell what became of its attention."""

import copy
import logging
import re
import warnings
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_softext.attention.inputs import candidate_inputs
from hf_softext.attention.verify import watch_attention
from hf_softext.coverage.discover import load
from hf_softext.coverage.row import Row
from hf_softext.coverage.tiny import LADDER, tiny_config

# parameters that a model may have that was not shrunk
_TOO_LARGE = 200_000_000
_REFUSED = re.compile(r"does not support the argument `(\w+)`")
# the order in which results of several attempts are preferred
_RANK = ("works", "in part", "refuses", "ignores", "error", "no attention", "not run")


def probe(name: str, attention: str) -> Row:
    """Build a class tiny, run it, and count.

    Args:
        name: as `model_classes` gives it.
        attention: a method of the catalogue.
    """
    rows: list[Row] = []
    for size in LADDER:
        cut_away = bool(rows) and rows[-1].status == "no attention"
        if cut_away and size.layers:
            continue
        rows.append(_attempt(name, attention, size))
        if rows[-1].status not in ("not run", "no attention") or cut_away:
            break
        # a failure that does not change with the size is not one of size
        if len(rows) > 1 and rows[-1].reason == rows[-2].reason:
            break
    return min(rows, key=lambda row: _RANK.index(row.status))


def probe_quietly(name: str, attention: str) -> Row:
    """`probe` in a process of its own: with one thread, and nothing printed."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return probe(name, attention)


def _attempt(name: str, attention: str, size: Any) -> Row:
    cls = load(name)
    if cls.config_class is None:
        return Row(name, "not run", reason="no config class")
    try:
        config = tiny_config(cls.config_class, size)
        if size.factor == 1 and _parameters(cls, config) > _TOO_LARGE:
            return Row(name, "not run", reason="too large unless shrunk")
        torch.manual_seed(0)
        # the grouped kernels for experts ask for widths that a tiny model does not have
        model = cls._from_config(
            config, attn_implementation=attention, experts_implementation="eager"
        ).eval()
    except KeyError as error:
        if attention in str(error):
            return Row(name, "error", reason=f"KeyError: {error}")
        return Row(name, "not run", reason=_first_line(error))
    except Exception as error:
        return Row(name, "not run", reason=_first_line(error))
    _spread(model)
    failures = []
    try:
        for inputs in candidate_inputs(model):
            try:
                return _run(name, model, attention, inputs)
            except NotImplementedError as error:
                refused = _REFUSED.search(str(error))
                if refused:
                    return Row(name, "refuses", reason=refused[1])
                failures.append(_first_line(error))
            except Exception as error:
                failures.append(_first_line(error))
    except Exception as error:
        failures.append(_first_line(error))
    return Row(name, "not run", reason=failures[0])


def _parameters(cls: Any, config: Any) -> int:
    with torch.device("meta"):
        return sum(x.numel() for x in cls._from_config(copy.deepcopy(config)).parameters())


def _run(name: str, model: Any, attention: str, inputs: dict[str, Any]) -> Row:
    model.set_attn_implementation(attention)
    with watch_attention(model) as seen:
        ours = _outputs(model, inputs)
    report = seen.report()
    classes = sorted({type(model.get_submodule(module)).__name__ for module in report.bypassed})
    if not report.reached:
        return Row(name, "ignores" if classes else "no attention", bypassed=tuple(classes))
    # inputs that the model's own attention code cannot take prove nothing, and raise here
    model.set_attn_implementation("eager")
    softmax = _outputs(model, inputs)
    counts = {"reached": len(report.reached), "bypassed": tuple(classes), "idle": len(report.idle)}
    if not _finite(ours):
        whose = "" if _finite(softmax) else ", nor eager's"
        return Row(name, "not run", reason=f"outputs are not finite{whose}", **counts)
    status = "in part" if classes else "works"
    return Row(name, status, change=_difference(ours, softmax), **counts)


def _outputs(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        # some models draw noise
        torch.manual_seed(0)
        return _tensors(model(**inputs))


def _finite(outputs: list[Tensor]) -> bool:
    return all(bool(x.isfinite().all()) for x in outputs)


def _difference(ours: list[Tensor], softmax: list[Tensor]) -> float | None:
    """Largest difference, relative to the largest output; None where softmax gives NaN."""
    changes = [
        ((x - y).abs().max() / y.abs().max().clamp(min=1e-12)).item()
        for x, y in zip(ours, softmax, strict=True)
        if x.numel() and _finite([y])
    ]
    return float(f"{max(changes):.2g}") if changes else None


def _spread(model: nn.Module) -> None:
    """Weights with which attention matters.

    Outputs of a layer have about the variance of its inputs, and gates that start closed are open.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif not bool(parameter.isfinite().all()) or not bool(parameter.any()):
                parameter.normal_(std=0.1)


def _tensors(output: Any) -> list[Tensor]:
    """The floating point tensors of an output, however nested."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


def _first_line(error: BaseException) -> str:
    # a config's validation says what is wrong in the cause
    error = error.__cause__ or error
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
