"""A classification head on a frozen encoder, fitted by one linear solve: is it any good?

    python examples/closed_form_head.py
    python examples/closed_form_head.py --full --csv closed_form_head.csv

all-MiniLM-L6-v2 on CLINC150, 150 intents; small by default, with 10 of them. Features are computed
once. Every method is fitted on the training split with each of its settings and random seeds, the
setting is chosen by mean accuracy on the validation split, and the table is about the test split.
"""

import argparse
import csv
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "test")
RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# lengths of the inputs, which make a kernel wide or narrow
LENGTHS = {"relu": (1.0, 2.0, 5.0), "cos": (0.1, 0.25, 0.5)}
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
RATES, EPOCHS, BATCH = (3e-4, 1e-3, 3e-3, 1e-2), 30, 256


@dataclass(frozen=True)
class Scale:
    """How much is done; None for all intents and rows."""

    intents: int | None
    rows: int | None
    sizes: tuple[int, ...]
    seeds: int


SMALL = Scale(intents=10, rows=20, sizes=(64, 256), seeds=2)
FULL = Scale(intents=None, rows=None, sizes=(512, 1024, 2048, 4096), seeds=3)


@dataclass(frozen=True)
class Data:
    """Features (N, 384) and classes (N,) by split."""

    x: dict[str, "Tensor"]
    y: dict[str, "Tensor"]
    classes: int


@dataclass(frozen=True)
class Fit:
    """One fit: what it was set to, how many seconds of one core it took, how many numbers it
    trained, what it says."""

    setting: str
    seconds: float
    trained: int
    predict: Callable[["Tensor"], "Tensor"]


def read(path: Path | None, scale: Scale) -> dict[str, list[tuple[str, str]]]:
    """Queries and intents by split, of CLINC150's own file or of the copy that we bring."""
    from hf_softext.demo.corpora import clinc150

    if path is None:
        rows = clinc150()
    else:
        whole = json.loads(path.read_text(encoding="utf-8"))
        rows = {split: [(query, intent) for query, intent in whole[split]] for split in SPLITS}
    chosen = set(sorted({intent for _, intent in rows["train"]})[: scale.intents])
    found: dict[str, list[tuple[str, str]]] = {}
    for split in SPLITS:
        ordered = sorted((row for row in rows[split] if row[1] in chosen), key=lambda row: row[1])
        by_intent = itertools.groupby(ordered, lambda row: row[1])
        found[split] = [row for _, group in by_intent for row in list(group)[: scale.rows]]
    return found


def features(rows: dict[str, list[tuple[str, str]]]) -> Data:
    """Unit means of the states of the real tokens."""
    import torch
    import transformers

    from hf_softext.demo.sentence import minilm

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    encoder = transformers.AutoModel.from_pretrained(minilm()).eval()
    intents = sorted({intent for _, intent in rows["train"]})
    x, y = {}, {}
    for split, pairs in rows.items():
        order = sorted(range(len(pairs)), key=lambda row: len(pairs[row][0]))
        x[split] = torch.empty(len(pairs), encoder.config.hidden_size)
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            texts = [pairs[row][0] for row in chosen]
            batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            states = encoder(**batch).last_hidden_state
            weight = batch["attention_mask"][..., None]
            means = (states * weight).sum(1) / weight.sum(1)
            x[split][chosen] = torch.nn.functional.normalize(means, dim=-1)
        y[split] = torch.tensor([intents.index(intent) for _, intent in pairs])
    return Data(x, y, len(intents))


def closed_form(data: Data, make: Callable[[], Any], name: str = "") -> Iterator[Fit]:
    """A head by one pass; all ridges come from the same sums. A fit is of use until the next."""
    from torch.utils.data import DataLoader, TensorDataset

    from hf_softext.adapters.snnk.closed_form import collect, install

    loader = DataLoader(TensorDataset(data.x["train"], data.y["train"]), batch_size=256)
    start = time.process_time()
    head = make().eval()
    sums, layer = collect(head, loader, progress=False)
    taken = time.process_time() - start
    for ridge in RIDGES:
        start = time.process_time()
        install(layer, sums, ridge)
        seconds = taken + time.process_time() - start
        count = sum(p.numel() for p in head.parameters())
        yield Fit(f"{name}ridge={ridge:g}", seconds, count, lambda x: head(x).argmax(1))


def raw_ridge(data: Data, seed: int) -> Iterator[Fit]:
    """The closed form without random features."""
    from torch import nn

    width = data.x["train"].shape[1]
    return closed_form(data, lambda: nn.Sequential(nn.Linear(width, data.classes)))


def snnk(data: Data, seed: int, kernel: str, size: int) -> Iterator[Fit]:
    """The closed form of an `SnnkHead`."""
    from hf_softext.adapters.snnk.head import SnnkHead

    width = data.x["train"].shape[1]
    for length in LENGTHS[kernel]:

        def make(length: float = length) -> Any:
            return SnnkHead(width, data.classes, size, kernel, normalize=length, seed=seed)

        yield from closed_form(data, make, f"normalize={length:g} ")


def logistic(data: Data, seed: int) -> Iterator[Fit]:
    """scikit-learn's logistic regression."""
    import torch
    from sklearn.linear_model import LogisticRegression

    for penalty in PENALTIES:
        start = time.process_time()
        model = LogisticRegression(C=penalty, max_iter=2000)
        model.fit(data.x["train"].numpy(), data.y["train"].numpy())
        seconds = time.process_time() - start
        yield Fit(
            f"C={penalty:g}",
            seconds,
            model.coef_.size + model.intercept_.size,
            lambda x, m=model: torch.from_numpy(m.predict(x.numpy())),
        )


def adam(data: Data, seed: int, size: int | None) -> Iterator[Fit]:
    """Cross-entropy by Adam, the rate falling linearly; a linear head, or an `SnnkHead`."""
    import torch
    from torch import nn

    from hf_softext.adapters.snnk.head import SnnkHead

    width = data.x["train"].shape[1]
    for rate in RATES:
        torch.manual_seed(seed)
        start = time.process_time()
        head = SnnkHead(width, data.classes, size or 1, seed=seed)
        out = nn.Linear(width, data.classes) if size is None else head.out

        def fixed(x: "Tensor", head: Any = head) -> "Tensor":
            # entries of the order of 1, as Adam and its rates expect
            return x * width**0.5 if size is None else head.features(x) * size**0.5

        z, y = fixed(data.x["train"]), data.y["train"]
        optimizer = torch.optim.Adam(out.parameters(), lr=rate)
        steps = EPOCHS * -(-len(z) // BATCH)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(z)).split(BATCH):
                optimizer.zero_grad()
                with torch.enable_grad():
                    nn.functional.cross_entropy(out(z[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
        seconds = time.process_time() - start
        count = sum(p.numel() for p in out.parameters())
        yield Fit(f"lr={rate:g}", seconds, count, lambda x, f=fixed, o=out: o(f(x)).argmax(1))


def methods(scale: Scale) -> dict[str, Callable[[Data, int], Iterator[Fit]]]:
    """All of them by name."""
    found: dict[str, Callable[[Data, int], Iterator[Fit]]] = {
        "logistic regression": logistic,
        "linear head, Adam": lambda data, seed: adam(data, seed, None),
        "ridge regression, closed form": raw_ridge,
    }
    for size in scale.sizes:
        found[f"SNNK relu {size}, closed form"] = lambda d, s, size=size: snnk(d, s, "relu", size)
    last = scale.sizes[-1]
    found[f"SNNK cos {last}, closed form"] = lambda data, seed: snnk(data, seed, "cos", last)
    found[f"SNNK relu {last}, Adam"] = lambda data, seed: adam(data, seed, last)
    return found


def measure(data: Data, method: Callable[[Data, int], Iterator[Fit]], seeds: int) -> dict[str, Any]:
    """The setting that is best on the validation split, and what it is worth on the test split."""
    by_setting: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for fit in method(data, seed):
            found = {"seconds": fit.seconds, "trained": fit.trained}
            for split in SPLITS:
                right = fit.predict(data.x[split]) == data.y[split]
                found[split] = 100 * right.double().mean().item()
            by_setting.setdefault(fit.setting, []).append(found)
    # the first of equals
    chosen = max(by_setting, key=lambda name: mean(run["val"] for run in by_setting[name]))
    runs = by_setting[chosen]
    tests = [run["test"] for run in runs]
    return {
        "setting": chosen,
        "trained": runs[0]["trained"],
        "train": round(mean(run["train"] for run in runs), 2),
        "validation": round(mean(run["val"] for run in runs), 2),
        "test": round(mean(tests), 2),
        "test_std": round(stdev(tests), 2),
        "cpu_seconds": round(mean(run["seconds"] for run in runs), 2),
        "tries": len(by_setting),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file, whole or not at all."""
    staged = path.with_name(f"{path.name}.tmp")
    with staged.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(staged, path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="data_full.json of CLINC150; a copy is built in")
    parser.add_argument(
        "--full", action="store_true", help="all of it: some 20 minutes on one core"
    )
    parser.add_argument("--csv", type=Path, help="where to write the table")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    scale = FULL if arguments.full else SMALL
    start = time.process_time()
    data = features(read(arguments.data, scale))
    sizes = ", ".join(f"{len(data.y[split]):,} {split}" for split in SPLITS)
    print(
        f"{data.classes} intents, rows: {sizes}; features in {time.process_time() - start:.0f} s\n"
    )
    print("| head | chosen | trained numbers | test accuracy, % | CPU seconds of a fit |")
    print("|---|---|---|---|---|")
    rows = []
    for name, method in methods(scale).items():
        row = {"method": name, **measure(data, method, scale.seeds)}
        accuracy = f"{row['test']:.2f} ± {row['test_std']:.2f}"
        chosen = f"| {name} | {row['setting']} | {row['trained']:,} | {accuracy} "
        print(f"{chosen}| {row['cpu_seconds']:.2f} |", flush=True)
        where = {"threads": 1, "torch": torch.__version__, "date": date.today().isoformat()}
        rows.append({**row, "classes": data.classes, "seeds": scale.seeds, **where})
        if arguments.csv is not None:
            write(arguments.csv, rows)


if __name__ == "__main__":
    main()
