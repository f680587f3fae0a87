"""Probe every model class, or those that a pattern picks, into a file of results."""

import importlib.metadata
import re
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_softext.catalog import find
from hf_softext.coverage.discover import model_classes
from hf_softext.coverage.pool import Failure, run_isolated
from hf_softext.coverage.probe import probe_quietly
from hf_softext.coverage.results import Header, append_result, read_results, write_results
from hf_softext.coverage.row import Row
from hf_softext.version import __version__


def run_coverage(
    out: Path, attention: str = "stablemax", only: str = "", jobs: int = 1, seconds: int = 10
) -> tuple[Header, list[Row]]:
    """Probe the model classes that `out` does not have yet, and add them to it.

    Args:
        out: file of results; made if it is not there, continued if it is.
        attention: a method of the catalogue.
        only: regular expression; classes such as "llama.LlamaModel" in which it is found.
        jobs: processes.
        seconds: processor time for one class.

    Returns:
        The header and all rows of the file.

    Raises:
        ValueError: an unknown method, a pattern that is none or matches nothing, or a file whose
            results were made with other versions or another method.
    """
    find(attention, "attention")
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise ValueError(f"only={only!r} is not a regular expression: {error}.") from None
    [(_, found)] = run_isolated(_discover, [None], seconds=600)
    if isinstance(found, Failure):
        raise RuntimeError(f"the model classes could not be listed: {found.reason}.")
    names, broken = found
    chosen = [name for name in names if pattern.search(name)]
    if not chosen:
        raise ValueError(f"only={only!r} matches none of the {len(names)} model classes.")
    header, rows = _begin(out, attention, broken)
    done = {row.name for row in rows}
    missing = [name for name in chosen if name not in done]
    work = partial(probe_quietly, attention=attention)
    progress = tqdm(total=len(chosen), initial=len(chosen) - len(missing), unit="class")
    with progress:
        for name, answer in run_isolated(work, missing, jobs=jobs, seconds=seconds):
            row = answer if isinstance(answer, Row) else Row(name, "not run", reason=answer.reason)
            append_result(out, row)
            progress.update()
    header, rows = read_results(out)
    write_results(out, header, rows)
    return header, sorted(rows, key=lambda row: row.name)


def _discover(_: Any) -> tuple[list[str], dict[str, str]]:
    return model_classes()


def _begin(out: Path, attention: str, broken: dict[str, str]) -> tuple[Header, list[Row]]:
    header = Header(
        attention=attention,
        transformers=importlib.metadata.version("transformers"),
        torch=importlib.metadata.version("torch"),
        hf_softext=__version__,
        date=date.today().isoformat(),
        broken=broken,
    )
    rows: list[Row] = []
    if out.exists():
        earlier, rows = read_results(out)
        if not header.same_run(earlier):
            raise ValueError(
                f"out={str(out)!r} has results of {earlier.attention!r} on transformers "
                f"{earlier.transformers}, torch {earlier.torch}: choose another file."
            )
        header = earlier
    # anew, as a run that was killed may have left half a line at the end
    write_results(out, header, rows)
    return header, rows
