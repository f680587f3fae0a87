"""The model classes of the installed transformers."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from torch import nn


def model_classes() -> tuple[list[str], dict[str, str]]:
    """Every subclass of `PreTrainedModel` with a forward pass, and what could not be imported.

    Returns:
        Names such as "llama.LlamaForCausalLM" (model folder and class), sorted; and for each folder
        that could not be imported the first line of the reason.
    """
    import transformers.models
    from transformers import PreTrainedModel

    broken = {}
    for folder in sorted(
        module.name for module in pkgutil.iter_modules(transformers.models.__path__)
    ):
        try:
            _import_folder(folder)
        except (ImportError, RuntimeError, OSError) as error:
            # some need a package that is not installed
            broken[folder] = f"{type(error).__name__}: {error}".splitlines()[0]
    found = {
        f"{folder_of(cls)}.{cls.__name__}"
        for cls in _subclasses(PreTrainedModel)
        if cls.__module__.startswith("transformers.models.")
        and cls.forward is not nn.Module.forward
    }
    return sorted(found), broken


def load(name: str) -> Any:
    """The class that `model_classes` calls `name`.

    Raises:
        ValueError: the installed transformers has no such class.
    """
    folder, _, class_name = name.partition(".")
    for module in _import_folder(folder):
        if class_name in vars(module):
            return vars(module)[class_name]
    raise ValueError(f"transformers has no model class {name!r}.")


def folder_of(cls: type) -> str:
    """The model folder that defines a class of transformers."""
    return cls.__module__.split(".")[2]


def _import_folder(folder: str) -> list[Any]:
    package = importlib.import_module(f"transformers.models.{folder}")
    if not hasattr(package, "__path__"):
        return []
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return [
        importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if name.startswith("modeling_")
    ]


def _subclasses(cls: type) -> Iterator[Any]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
