"""`softext verify-fit` and `softext report`."""

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
    # after the arguments are right, as this takes seconds
    from hf_softext.training.verifier.run import fit_verifier

    result = fit_verifier(args)
    if result is not None:
        print(result.summary())


def report(
    folder: str, data: str | None, model: str | None, columns: dict[str, str], **options: Any
) -> None:
    """Write the report of a saved head and print where it is; see `report_folder`."""
    from hf_softext.training.verifier.data import Columns
    from hf_softext.training.verifier.folder_report import report_folder

    path = report_folder(folder, data, model, columns=Columns(**columns), **options)
    print(f"The report is {path.resolve()}")
