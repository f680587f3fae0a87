"""`softext list`, `softext info` and `softext env`."""

import importlib.metadata
import inspect
import platform

from rich.console import Console
from rich.table import Table

from hf_softext.catalog import find, methods
from hf_softext.cli.plain_math import plain_math


def print_list() -> None:
    """A table with a row for each method."""
    table = Table(box=None)
    for title in ("name", "family", "what it is", "arXiv", "status"):
        # a name is to be typed: in a narrow terminal it is the description that is folded
        whole = title != "what it is"
        table.add_column(title, no_wrap=whole, min_width=_widest(title) if whole else None)
    for row in methods():
        table.add_row(row.name, row.family, row.summary, row.paper.arxiv, row.status)
    Console().print(table)


def _widest(title: str) -> int:
    column = {"name": "name", "family": "family", "status": "status"}.get(title)
    found = [getattr(row, column) if column else row.paper.arxiv for row in methods()]
    return max(len(word) for word in (title, *found))


def print_info(name: str, model: str | None = None) -> None:
    """Everything the catalogue and the implementation say about one method.

    Raises:
        ValueError: a model is given, and the method is no adapter.
    """
    row = find(name)
    if model is not None and row.family != "adapter":
        raise ValueError(
            f"--model {model!r}: the size of adapters depends on it; {name!r} is none."
        )
    paper = row.paper
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{row.name} ({row.family}, {row.status}): {row.summary}", markup=False)
    console.print(
        f'{paper.authors}, "{paper.title}", {paper.year}, arXiv {paper.arxiv}', markup=False
    )
    console.print(row.usage, markup=False)
    implementation = row.load()
    if row.family == "attention":
        table = Table("parameter", "default", "allowed", box=None)
        for parameter, spec in implementation.parameters.items():
            default = "from the model" if spec.default is None else str(spec.default)
            table.add_row(parameter, default, spec.describe())
        console.print(table)
        return
    if row.family == "loss":
        from hf_softext.losses.base import parameters

        console.print(f"for {', '.join(sorted(implementation.kinds))} problems", markup=False)
        table = Table("argument", "default", box=None)
        for argument, default in parameters(implementation).items():
            table.add_row(argument, repr(default))
        console.print(table)
    if model is not None:
        console.print(_sizes(model))
        return
    console.print(plain_math(inspect.getdoc(implementation) or ""), markup=False)


def _sizes(source: str) -> Table:
    """What adapters of several sizes train on a model, and LoRA beside them."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig

    from hf_softext.adapters.snnk.config import SnnkConfig
    from hf_softext.adapters.snnk.size import adapter_size
    from hf_softext.training.pretrained import pretrained_class

    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = pretrained_class(source, config)._from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    table = Table("adapter", "layers", "trained", "of the model", "fixed, saved with it", box=None)

    def add(title: str, config: object) -> None:
        size = adapter_size(model, config)
        share = f"{size.trained / total:.3%}"
        layers, fixed = (f"{n:,}" if size.modules else "" for n in (size.modules, size.fixed))
        table.add_row(title, layers, f"{size.trained:,}", share, fixed)

    for features in (8, 16, 32, 64):
        add(f"snnk, num_features={features}", SnnkConfig(num_features=features))
    try:
        for rank in (8, 16):
            add(f"lora, r={rank} (peft)", LoraConfig(r=rank))
    except ValueError:
        # not every model type has any
        pass
    return table


def print_env() -> None:
    """Versions, one a line."""
    packages = (
        "hf-softext torch transformers accelerate datasets peft evaluate safetensors typer wrapt"
    )
    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in packages.split():
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "not installed")
