"""Arguments of the launchable trainers: a YAML file first, the command line over it."""

import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

# its own module, not the package's name for it: this needs no torch, and so --help no time
from transformers.hf_argparser import HfArgumentParser

from hf_softext.catalog import did_you_mean
from hf_softext.training.processes import must_stay_on_cpu

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Arguments = TypeVar("Arguments", bound="DataclassInstance")


def parse_arguments(
    arguments: type[Arguments], argv: Sequence[str] | None = None, usage: str | None = None
) -> Arguments:
    """Parse `[CONFIG.yaml] [--name value ...]` into a dataclass of arguments.

    Args:
        arguments: the dataclass, such as a `TrainingArguments`.
        argv: the command line without the program; by default this process's.
        usage: what `--help` begins with; by default the program.

    Returns:
        An instance: the dataclass's defaults, overridden by the file, overridden by the command
        line.

    Raises:
        ValueError: the file is not there or not a YAML mapping, it or the command line has a name
            that the dataclass does not know (the nearest known one is suggested), or several
            processes are to use an accelerator that is not there.
        SystemExit: the command line is wrong, or asks for `--help`.

    Notes:
        Where several processes were launched and there is no accelerator, `use_cpu` is True.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    usage = usage or "%(prog)s [CONFIG.yaml] [--name value ...]"
    parser = HfArgumentParser(arguments, usage=usage)  # pyright: ignore[reportArgumentType]
    _own_first(parser, arguments)
    known = [field.name for field in fields(arguments) if field.init]
    on_cpu = "use_cpu" in known and must_stay_on_cpu()
    if on_cpu:
        parser.set_defaults(use_cpu=True)
    if words and is_config(words[0]):
        path = words.pop(0)
        given = read_config(path)
        for name in given:
            if name not in known:
                near = did_you_mean(str(name), known).split(" Known:")[0]
                raise ValueError(f"{path} has an unknown argument {name!r}.{near}")
        # a value in the file stands in for the default, so a flag that is required may come from
        # either
        parser.set_defaults(**given)
        for action in parser._actions:
            action.required = action.required and action.dest not in given
    parsed, *_, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = did_you_mean(flag.lstrip("-").replace("-", "_"), known).split(" Known:")[0]
        raise ValueError(f"unknown argument {flag!r}.{near}")
    if on_cpu and not parsed.use_cpu:
        raise ValueError(
            "use_cpu=False: there is no accelerator here, and several processes only join on the "
            "CPU; leave it out."
        )
    return parsed


def is_config(word: str) -> bool:
    """Whether a word of the command line means a YAML file."""
    return Path(word).suffix in (".yaml", ".yml")


def read_config(path: str) -> dict[str, Any]:
    """A YAML file of arguments.

    Raises:
        ValueError: it is not there, is no YAML (file and line are named), or no mapping.
    """
    if not Path(path).is_file():
        raise ValueError(f"CONFIG {path!r} is no file.")
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{path}{line} is not YAML: {problem}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} is not a mapping of argument names to values.")
    return given


def _own_first(parser: HfArgumentParser, arguments: type) -> None:
    """Have `--help` begin with what the program asks for, before the many of transformers."""
    own = [
        name
        for kind in arguments.__mro__
        if not kind.__module__.startswith("transformers.")
        for name in inspect.get_annotations(kind)
    ]
    order = dict.fromkeys(["help", "task", "model", "data", "output_dir", *own])
    places = {name: place for place, name in enumerate(order)}
    shown = parser._optionals._group_actions
    shown.sort(key=lambda action: places.get(action.dest, len(places)))


def json_object(name: str, value: Any) -> dict[str, Any]:
    """An argument that is a JSON object, or already a mapping from a YAML file.

    Raises:
        ValueError: it is neither; the message names it.
    """
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={value!r} is not JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{name}={value!r} must be a JSON object such as '{{\"power\": 3}}'.")
    return parsed
