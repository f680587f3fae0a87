"""The page on coverage, made from a file of results."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from hf_softext.coverage.results import Header
from hf_softext.coverage.row import STATUSES, Row


def docs_page(header: Header, rows: list[Row]) -> str:
    """The page in Markdown.

    The same header and rows always give the same text.
    """
    count = Counter(row.status for row in rows)
    folders = _by_folder(rows)
    working = sum(any(row.status == "works" for row in group) for group in folders.values())
    good = _only(rows, "works")
    part = sum(row.idle > 0 for row in good)
    changed = sum(row.change is not None and row.change > 1e-3 for row in good)
    unknown = sum(row.change is None for row in good)
    sections = [
        "# Which models run these attentions",
        "",
        "<!-- made by: softext coverage --out FILE --docs PAGE; do not edit -->",
        "",
        f"Every subclass of `PreTrainedModel` with a forward pass in transformers "
        f"{header.transformers}: {len(rows)} classes in {len(folders)} model folders. Each was "
        f"built small from its default config with `attn_implementation={header.attention!r}` "
        f"and run once on CPU (torch {header.torch}, hf_softext {header.hf_softext}, "
        f"{header.date}). {working} folders have a class that works.",
        "",
        *_table(
            ["status", "classes", "meaning"],
            ([status, str(count[status]), meaning] for status, meaning in STATUSES.items()),
        ),
        "",
        f"A row says what one forward pass did. {part} of the working classes have attention that "
        "did not run, as it takes inputs that were not given (images, mostly); such a part mostly "
        "has rows of its own. "
        f"The outputs of {changed} of the {count['works']} working classes differ from those under "
        f"eager softmax by more than a thousandth of the largest; {unknown} could not be compared. "
        "Attention is recognised by the name of the module's class, so a few of those that ignore "
        "the name are not softmax attention at all (RWKV).",
        "",
        "## In part",
        "",
        *_table(
            ["model", "classes", "attention that stays the model's own"],
            (
                [
                    folder,
                    _names(group),
                    ", ".join(sorted({x for row in group for x in row.bypassed})),
                ]
                for folder, group in _by_folder(_only(rows, "in part")).items()
            ),
        ),
        "",
        "## Ignored",
        "",
        "transformers accepts the name for these and computes softmax; `apply_attention` and "
        "`softext verify` refuse them.",
        "",
        *_table(
            ["model", "classes", "attention"],
            (
                [
                    folder,
                    _names(group),
                    ", ".join(sorted({x for row in group for x in row.bypassed})),
                ]
                for folder, group in _by_folder(_only(rows, "ignores")).items()
            ),
        ),
        "",
        "## Refused",
        "",
        *_table(["model", "classes", "argument"], _with_reasons(rows, "refuses")),
        "",
        "## Not built",
        "",
        *_table(["model", "classes", "error"], _with_reasons(rows, "error")),
        "",
        "## Not run",
        "",
        "Unknown, and not counted as working: the generic small config or the generic inputs do "
        "not fit, or a package is missing.",
        "",
        *_table(["model", "classes", "reason"], _with_reasons(rows, "not run")),
        *(f"| {folder} | all | {_cell(reason)} |" for folder, reason in header.broken.items()),
        "",
        "## By model",
        "",
        *_table(
            ["model", *STATUSES],
            (
                [folder, *(str(_count(group, status) or "") for status in STATUSES)]
                for folder, group in folders.items()
            ),
        ),
    ]
    return "\n".join(sections) + "\n"


def summary(header: Header, rows: list[Row]) -> str:
    """A line for each status, for the terminal."""
    count = Counter(row.status for row in rows)
    lines = [f"{status:13} {count[status]:5}  {STATUSES[status]}" for status in STATUSES]
    title = f"{len(rows)} classes of transformers {header.transformers}, {header.attention}"
    return "\n".join([title, *lines])


def _only(rows: Iterable[Row], status: str) -> list[Row]:
    return [row for row in rows if row.status == status]


def _count(rows: Iterable[Row], status: str) -> int:
    return len(_only(rows, status))


def _by_folder(rows: Iterable[Row]) -> dict[str, list[Row]]:
    folders = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.name):
        folders[row.name.partition(".")[0]].append(row)
    return dict(sorted(folders.items()))


def _with_reasons(rows: list[Row], status: str) -> Iterable[list[str]]:
    """One line for each folder and reason."""
    for folder, group in _by_folder(_only(rows, status)).items():
        for reason in sorted({row.reason for row in group}):
            yield [folder, _names(row for row in group if row.reason == reason), _cell(reason)]


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(row.name.partition(".")[2] for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    body = [f"| {' | '.join(line)} |" for line in lines]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]
