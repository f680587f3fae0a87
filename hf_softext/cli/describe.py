"""`softext list`, `softext info` and `softext env`."""

import importlib.metadata
import inspect
import platform

from rich.console import Console
from rich.table import Table

from hf_softext.catalog import find, methods


def print_list() -> None:
    """A table with a row for each method."""
    table = Table("name", "family", "what it is", "arXiv", "status", box=None)
    for row in methods():
        table.add_row(row.name, row.family, row.summary, row.paper.arxiv, row.status)
    Console().print(table)


def print_info(name: str) -> None:
    """Everything the catalogue and the implementation say about one method."""
    row = find(name)
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
    console.print(inspect.getdoc(implementation), markup=False)


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
