"""The commands of `softext` and their options."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="softext",
    help="Replacements for softmax inside Hugging Face models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

train = typer.Typer(help="Train a model.", no_args_is_help=True)
app.add_typer(train, name="train")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A hub id or a folder.")]
AttentionOption = Annotated[
    str, typer.Option("--attention", "-a", help="Attention method, see `list`.")
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", metavar="NAME=VALUE", help="Parameter of the method; may be repeated."
    ),
]


@app.command("list")
def list_methods() -> None:
    """List the methods that work."""
    from hf_softext.cli import describe

    describe.print_list()


@app.command()
def info(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A name from `list`.")],
    model: Annotated[
        str | None,
        typer.Option(help="A hub id or a folder: the size of an adapter on it; no weights needed."),
    ] = None,
) -> None:
    """Show a method: its paper, its parameters with their ranges, how to switch it on."""
    from hf_softext.cli import describe

    describe.print_info(method, model)


@app.command()
def env() -> None:
    """Print the versions that a bug report needs."""
    from hf_softext.cli import describe

    describe.print_env()


@app.command()
def verify(model: ModelArgument, attention: AttentionOption, param: ParamOption = None) -> None:
    """Tell whether a model would really run an attention method, without loading its weights.

    Exit status 2 where it would not: some model classes have attention code of their own.
    """
    from hf_softext.cli import attention as commands

    commands.verify(model, attention, param or [])


@app.command()
def adopt(
    model: ModelArgument,
    attention: AttentionOption,
    data: Annotated[
        Path, typer.Option(help="Text: .txt (a line an example), .jsonl, .csv, .parquet.")
    ],
    out: Annotated[Path | None, typer.Option(help="New folder. [default: MODEL-ATTENTION]")] = None,
    param: ParamOption = None,
    column: Annotated[
        str, typer.Option(help="The column of a table that holds the text.")
    ] = "text",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of an example that are used.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of examples.")] = 42,
) -> None:
    """Teach a pretrained text model to compute under a new attention what it computed before.

    Started again with the same arguments, an interrupted run continues. More settings, and several
    processes: trainers/adopt_attention.py.
    """
    from hf_softext.cli import attention as commands

    given = {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_length": max_length,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    commands.adopt(model, attention, data, out, param or [], column=column, seed=seed, **settings)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def quantize(context: typer.Context) -> None:
    """Quantize a model to any average of bits: MODEL or CONFIG.yaml, [--name value].

    For example: softext quantize MODEL --bits 2.5 --data calibration.txt --out NEW

    Started again with the same arguments, an interrupted run continues. `softext quantize --help`
    lists every argument. Several processes: `accelerate launch trainers/quantize.py`.
    """
    from hf_softext.cli import quantize as commands

    commands.quantize(context.args)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint quantized by BAQ.")
    ],
    out: Annotated[Path, typer.Option(help="New folder.")],
    dtype: Annotated[
        str, typer.Option(help="auto (as it computes), float32, bfloat16 or float16.")
    ] = "auto",
) -> None:
    """Write a quantized model as a plain checkpoint, which loads without this package."""
    from hf_softext.cli import quantize as commands

    commands.export(checkpoint, out, dtype)


@app.command(
    "verify-fit",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def verify_fit(context: typer.Context) -> None:
    """Fit an SDM head: which predictions may be relied on. MODEL or CONFIG.yaml, [--name value].

    For example: softext verify-fit MODEL --data train.csv --out NEW --alpha 0.95 --report

    The data has a text and its label, or a prompt, its completion and whether that is_good.
    Started again with the same arguments, an interrupted run continues. `softext verify-fit --help`
    lists every argument. Several processes: `accelerate launch trainers/train_verifier.py`.
    """
    from hf_softext.cli import verify_fit as commands

    commands.verify_fit(context.args)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of an SDM head.")],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled rows to measure on. [default: the head's calibration rows]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model, if DIR has none; needed with --data.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page. [default: DIR/report.html]")] = None,
    text_column: Annotated[str, typer.Option(help="The column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column of the labels.")] = "label",
    prompt_column: Annotated[str, typer.Option(help="The column of the prompts.")] = "prompt",
    completion_column: Annotated[
        str, typer.Option(help="The column of the completions.")
    ] = "completion",
    good_column: Annotated[
        str, typer.Option(help="The column that says whether a completion is good.")
    ] = "is_good",
    tokenizer: Annotated[
        str | None, typer.Option(help="A hub id or a folder. [default: the model's]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a row. [default: as in the fit]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the model. [default: as in the fit]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once in the model.")] = 32,
    worst: Annotated[int, typer.Option(min=0, help="Errors that are shown.")] = 10,
    use_cpu: Annotated[bool, typer.Option("--use-cpu", help="Stay on the CPU.")] = False,
) -> None:
    """Write the page of an SDM head: what it admits and why, its errors, its region.

    Where nothing is admitted, it says which class is in the way and which alpha would do.
    """
    from hf_softext.cli import verify_fit as commands

    columns = {
        "text": text_column,
        "label": label_column,
        "prompt": prompt_column,
        "completion": completion_column,
        "good": good_column,
    }
    commands.report(
        folder,
        data,
        model,
        columns,
        out=out,
        tokenizer=tokenizer,
        max_length=max_length,
        dtype=dtype,
        batch_size=batch_size,
        worst=worst,
        use_cpu=use_cpu,
    )


@app.command()
def coverage(
    out: Annotated[Path, typer.Option(help="File of results; continued if it is there.")] = Path(
        "coverage.jsonl"
    ),
    attention: AttentionOption = "stablemax",
    only: Annotated[
        str, typer.Option(metavar="REGEX", help="Classes such as llama.LlamaModel.")
    ] = "",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    docs: Annotated[Path | None, typer.Option(help="Write a page in Markdown, too.")] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Print a line for each class.")
    ] = False,
) -> None:
    """Find out which model classes of the installed transformers run an attention method.

    Builds each one small and runs it once; some ten minutes for all of them. Started again with
    the same file, it continues.
    """
    from hf_softext.cli import coverage as commands

    commands.coverage(out, attention, only, jobs, docs, classes)


@train.command(
    "classifier",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train_classifier(context: typer.Context) -> None:
    """Train a text classifier with a loss by name: [CONFIG.yaml] [--name value].

    `softext train classifier --help` lists every argument. Several processes:
    `accelerate launch trainers/train_classifier.py`.
    """
    from hf_softext.cli import train as commands

    commands.classifier(context.args)


@train.command(
    "distill",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train_distilled(context: typer.Context) -> None:
    """Train a text classifier with the answers of a teacher: [CONFIG.yaml] [--name value].

    `softext train distill --help` lists every argument. Several processes:
    `accelerate launch trainers/train_distilled.py`.
    """
    from hf_softext.cli import train as commands

    commands.distill(context.args)


@train.command(
    "causal-lm",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train_causal_lm(context: typer.Context) -> None:
    """Train a language model and test it beyond its training length: [CONFIG.yaml] [--name value].

    `softext train causal-lm --help` lists every argument. Several processes:
    `accelerate launch trainers/train_causal_lm.py`.
    """
    from hf_softext.cli import train as commands

    commands.causal_lm(context.args)


@train.command(
    "adapter",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train_adapter(context: typer.Context) -> None:
    """Train an adapter by name on a classifier or language model: [CONFIG.yaml] [--name value].

    For example: softext train adapter --adapter snnk --model MODEL --data FILE --output_dir NEW

    `softext train adapter --help` lists every argument, with `--task causal-lm` those for a
    language model. Several processes: `accelerate launch trainers/train_adapter.py`.
    """
    from hf_softext.cli import train as commands

    commands.adapter(context.args)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the models.")] = Path(
        "softext-demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes instead of ten; rough figures.")
    ] = False,
) -> None:
    """Train, compare, save, reload, generate and draw, offline: one HTML report.

    A small language model on Shakespeare under five attentions, tested at up to 16 times its
    training length; then the adoption of three attentions by all-MiniLM-L6-v2. Needs the extra
    `demo`.
    """
    from hf_softext.demo.run import run_demo

    report = run_demo(out, quick)
    typer.echo(f"The report is {report.resolve()}")
