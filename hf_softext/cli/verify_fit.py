"""`softext verify-fit` and `softext report`."""

import sys
from pathlib import Path
from typing import Any

from hf_softext.training.arguments import parse_arguments
from hf_softext.training.verifier.arguments import VerifierArguments


def verify_fit(words: list[str]) -> None:
    """Fit an SDM head and print what it admits.

    Args:
        words: `MODEL [--name value ...]` or `CONFIG.yaml [--name value ...]`.
    """
    if words and not words[0].startswith("-") and Path(words[0]).suffix not in (".yaml", ".yml"):
        words = ["--model", *words]
    usage = "softext verify-fit MODEL|CONFIG.yaml --data FILE --out DIR [--name value ...]"
    args = parse_arguments(VerifierArguments, words, usage)
    if args.model and args.data:
        _announce(f"loading {args.model}, reading {args.data} ...")
    # after the arguments are right, as this takes seconds
    from hf_softext.training.verifier.run import fit_verifier

    result = fit_verifier(args)
    if result is not None:
        print(result.summary())


def report(
    folder: str, data: str | None, model: str | None, columns: dict[str, str], **options: Any
) -> None:
    """Write the report of a saved head and print where it is; see `report_folder`."""
    _announce(f"reading {folder}{f' and {data}' if data else ''} ...")
    from hf_softext.training.verifier.data import Columns
    from hf_softext.training.verifier.folder_report import report_folder

    path = report_folder(folder, data, model, columns=Columns(**columns), **options)
    print(f"The report is {path.resolve()}")


def _announce(text: str) -> None:
    """Say at once what takes seconds; on stderr, as it is no result."""
    print(text, file=sys.stderr, flush=True)
