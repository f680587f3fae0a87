"""Find out whether a model really runs the attention that it was asked for."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_softext.attention._base import OBSERVERS
from hf_softext.attention.inputs import candidate_inputs
from hf_softext.catalog import methods


@dataclass(frozen=True)
class AttentionReport:
    """What one forward pass reached.

    Attributes:
        attention: the implementation named by the model's config.
        reached: names of the modules that called one of this package's methods.
        bypassed: names of the attention modules that ran without calling one.
        idle: names of the attention modules that did not run: those for images, say, if the
            inputs were text.
    """

    attention: str
    reached: list[str]
    bypassed: list[str]
    idle: list[str]

    def __str__(self) -> str:
        total = len(self.reached) + len(self.bypassed)
        text = f"{self.attention}: {len(self.reached)} of {total} attention modules reached"
        text += f"; bypassed: {', '.join(self.bypassed)}" if self.bypassed else ""
        return text + (f"; {len(self.idle)} did not run" if self.idle else "")


def verify_attention(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> AttentionReport:
    """Run one forward pass and count the attention modules that used the chosen method.

    Some model classes of transformers do not look attention up in the registry; most of those
    accept the name all the same and ignore it. This is how to know.

    Args:
        model: a transformers model that was given one of this package's attention names.
        inputs: keyword arguments of its forward; by default a few tokens, or an empty image or
            sound, as its config describes them.

    Returns:
        The modules reached and the attention modules that ran without being reached.

    Raises:
        ValueError: no module was reached, or the model has another attention than ours, or no
            default inputs are known for it.
    """
    config: Any = model.config
    names = [row.name for row in methods("attention")]
    running = {
        getattr(getattr(module, "config", None), "_attn_implementation", None)
        for module in model.modules()
    }
    used = [name for name in names if name in running]
    if not used:
        raise ValueError(
            f"{type(model).__name__} runs attn_implementation={config._attn_implementation!r}; "
            f"choose one of {', '.join(names)} first: hf_softext.apply_attention(model, "
            f"{names[0]!r})."
        )
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        report = _first_that_runs(
            model, candidate_inputs(model) if inputs is None else [inputs], "/".join(used)
        )
    finally:
        for module, mode in modes:
            module.training = mode
    if not report.reached:
        raise ValueError(_ignored(model, report))
    return report


def _first_that_runs(
    model: nn.Module, candidates: Iterable[Mapping[str, Any]], attention: str
) -> AttentionReport:
    failures: list[Exception] = []
    for inputs in candidates:
        try:
            with torch.no_grad(), watch_attention(model) as seen:
                model(**inputs)
            return seen.report(attention)
        except NotImplementedError:
            # a refusal of ours, which other inputs would not change
            raise
        except Exception as error:
            # the next candidate has another layout; if none runs, the likeliest one's error counts
            failures.append(error)
    raise failures[0]


class Watch:
    """The attention modules of a model that ran, and those of them that called a method of ours."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.ran: list[nn.Module] = []
        self.reached: list[nn.Module] = []

    def report(self, attention: str = "") -> AttentionReport:
        """What was seen so far."""
        return _report(self.model, attention, self.ran, self.reached)


@contextmanager
def watch_attention(model: nn.Module) -> Iterator[Watch]:
    """Record which attention modules of `model` run inside the block, and which call a method."""
    seen = Watch(model)
    hooks = [
        module.register_forward_pre_hook(lambda module, _: seen.ran.append(module))
        for module in model.modules()
        if _looks_like_attention(module)
    ]
    # one object, as removing goes by identity of what was added
    observer = seen.reached.append
    OBSERVERS.append(observer)
    try:
        yield seen
    finally:
        OBSERVERS.remove(observer)
        for hook in hooks:
            hook.remove()


def _looks_like_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower() or "attn" in type(module).__name__.lower()


def _report(
    model: nn.Module, attention: str, ran: list[nn.Module], reached: list[nn.Module]
) -> AttentionReport:
    names = {id(module): name for name, module in model.named_modules()}
    hit = sorted({names[id(module)] for module in reached if id(module) in names})
    # an attention module may wrap another one: only the innermost counts, and none that contains
    # or sits in a hit
    bypassed = [name for name in _innermost({names[id(m)] for m in ran}) if not _related(name, hit)]
    known = _innermost({names[id(m)] for m in model.modules() if _looks_like_attention(m)})
    idle = [name for name in known if not _related(name, [*hit, *bypassed])]
    return AttentionReport(attention, hit, bypassed, idle)


def _innermost(names: set[str]) -> list[str]:
    return sorted(
        name for name in names if not any(other.startswith(name + ".") for other in names)
    )


def _related(name: str, others: list[str]) -> bool:
    return any(x == name or x.startswith(name + ".") or name.startswith(x + ".") for x in others)


def _ignored(model: nn.Module, report: AttentionReport) -> str:
    where = (
        f"{len(report.bypassed)} attention modules ran ({report.bypassed[0]}, ...)"
        if report.bypassed
        else "none ran"
    )
    return (
        f"{type(model).__name__} accepts attn_implementation={report.attention!r} and ignores it: "
        f"{where}, none through "
        f"transformers' AttentionInterface. Its outputs are those of its own attention code."
    )
