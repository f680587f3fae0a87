"""`softext coverage`."""

import re
from pathlib import Path

from hf_softext.coverage.report import docs_page, summary
from hf_softext.coverage.run import run_coverage


def coverage(
    out: Path, attention: str, only: str, jobs: int, docs: Path | None, classes: bool
) -> None:
    """Probe the model classes, print what was found, and write the page if one is named.

    Args:
        out: file of results.
        attention: a method of the catalogue.
        only: regular expression that picks classes.
        jobs: processes.
        docs: the page, or None.
        classes: whether to print a line for each class, and not only the sums.

    Raises:
        ValueError: `docs` for a part of the classes; and what `run_coverage` raises.
    """
    if docs is not None and only:
        raise ValueError(f"docs={str(docs)!r} shows every class: leave out --only.")
    header, rows = run_coverage(out, attention=attention, only=only, jobs=jobs)
    chosen = [row for row in rows if re.search(only, row.name)]
    if classes:
        for row in chosen:
            why = row.reason or ", ".join(row.bypassed)
            print(f"{row.status:13} {row.name}" + (f": {why}" if why else ""))
    print(summary(header, chosen))
    print(f"results in {out}")
    if docs is not None:
        docs.parent.mkdir(parents=True, exist_ok=True)
        docs.write_text(docs_page(header, rows), encoding="utf-8")
        print(f"page in {docs}")
