"""Classifiers to be trusted or not: rows to fit on, rows to test on, and rows that have shifted."""

import csv
import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from hf_softext.demo.corpora import BANKING, clinc150
from hf_softext.demo.sentence import minilm
from hf_softext.heads.features import extract_features

CACHE = Path(__file__).parents[1] / "build" / "selective"
SOURCES = {
    "clinc150/data_full.json": "github.com/clinc/oos-eval, data/data_full.json",
    "banking77/test.csv": "github.com/PolyAI-LDN/task-specific-datasets, banking_data/test.csv",
}


@dataclass(frozen=True)
class Part:
    """Rows of one kind.

    Attributes:
        x: (N, D) features.
        y: (N,) int64 classes; None where no class is right, and nothing should be admitted.
    """

    x: Tensor
    y: Tensor | None


@dataclass(frozen=True)
class Task:
    """A classification and its shifts.

    Attributes:
        fit: what the methods may see.
        tests: what they are tested on, by name; the first is like `fit`.
    """

    fit: Part
    tests: dict[str, Part]


def load(name: str, seed: int, data: Path | None) -> Task:
    """A task; `seed` draws typos, noise and the test rows of digits.

    Args:
        name: "intents", "domains" or "digits".
        seed: see above.
        data: folder of the sets that are not in the package; None: without these.
    """
    return digits(seed) if name == "digits" else queries(seed, data, banking=name == "banking")


def queries(seed: int, data: Path | None, banking: bool) -> Task:
    """CLINC150, all of its 150 intents or the 15 of banking, as MiniLM's embeddings."""
    splits = clinc150()
    chosen = set(BANKING) if banking else {intent for _, intent in splits["train"]}
    names = sorted(chosen)
    rows = {
        split: [(query, names.index(intent)) for query, intent in pairs if intent in chosen]
        for split, pairs in splits.items()
    }

    def part(pairs: Sequence[tuple[str, int]]) -> Part:
        return Part(embeddings([query for query, _ in pairs]), torch.tensor([y for _, y in pairs]))

    draw = random.Random(f"typos {seed}")
    noised = [(typos(query, draw), label) for query, label in rows["test"]]
    tests = {"test": part(rows["test"]), "typos": part(noised)}
    if banking:
        others = [query for query, intent in splits["test"] if intent not in chosen]
        tests["other intents"] = Part(embeddings(others), None)
    if data is not None:
        found = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
        tests["out of scope"] = Part(embeddings([query for query, _ in found["oos_test"]]), None)
        with (data / "banking77" / "test.csv").open(newline="", encoding="utf-8") as file:
            bank = [row["text"] for row in csv.DictReader(file)]
        tests["Banking77"] = Part(embeddings(bank), None)
    return Task(part([*rows["train"], *rows["val"]]), tests)


def digits(seed: int) -> Task:
    """scikit-learn's digits, pixels from 0 to 1; 397 are tested on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 16
    labels = torch.tensor(found.target)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=draw)
    fit, test = order[:1400], order[1400:]
    x, y = images[test], labels[test]
    noise = torch.randn(x.shape, generator=draw)
    moved = torch.zeros_like(x)
    moved[:, :, 1:] = x[:, :, :-1]
    scattered = x.flatten(1)[:, torch.randperm(64, generator=draw)]
    return Task(
        Part(images[fit].flatten(1), labels[fit]),
        {
            "test": Part(x.flatten(1), y),
            "noise": Part((x + 0.25 * noise).clamp(0, 1).flatten(1), y),
            "moved a pixel": Part(moved.flatten(1), y),
            "turned by 90 degrees": Part(torch.rot90(x, 1, (1, 2)).flatten(1), y),
            "scattered pixels": Part(scattered, None),
            "uniform noise": Part(torch.rand(len(x), 64, generator=draw), None),
        },
    )


def typos(text: str, draw: random.Random, share: float = 0.15) -> str:
    """Letters swapped, dropped, doubled or replaced, each with probability `share`."""
    letters: list[str] = []
    for letter in text:
        if not letter.isalpha() or draw.random() >= share:
            letters.append(letter)
            continue
        kind = draw.randrange(4)
        if kind == 0 and letters:
            letters.insert(len(letters) - 1, letter)
        elif kind == 1:
            letters += [letter, letter]
        elif kind == 2:
            letters.append(draw.choice(string.ascii_lowercase))
    return "".join(letters)


def embeddings(texts: Sequence[str]) -> Tensor:
    """(N, 384) of all-MiniLM-L6-v2, frozen: unit means of the last states of the real tokens."""
    model, tokenizer = _encoder()
    found = extract_features(model, tokenizer, list(texts), pooling="mean", cache_dir=CACHE)
    return torch.nn.functional.normalize(found, dim=-1)


def halves(y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of two halves that have the same share of every class."""
    draw = np.random.default_rng(seed)
    order = torch.from_numpy(draw.permutation(len(y)))
    sorted_rows = order[torch.argsort(y[order], stable=True)]
    return sorted_rows[::2], sorted_rows[1::2]


@cache
def _encoder():
    return AutoModel.from_pretrained(minilm()).eval(), AutoTokenizer.from_pretrained(minilm())
