"""Where the evidence for the losses comes from: texts as embeddings of a frozen encoder, digits."""

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from hf_softext.demo.corpora import clinc150
from hf_softext.demo.sentence import minilm

CACHE = Path(__file__).parents[1] / "build" / "loss_evidence"
SPLITS = ("train", "val", "test")
EMOTIONS = 28
SOURCES = {
    "goemotions": "train.tsv, dev.tsv, test.tsv of github.com/monologg/GoEmotions-pytorch, "
    "data/original",
    "mnist": "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz of MNIST (Y. LeCun, C. Cortes, "
    "C. J. C. Burges; for instance torchvision's mirror)",
}


@dataclass(frozen=True)
class Split:
    """Rows of a task.

    Attributes:
        x: (N, D) embeddings, or (N, 1, 28, 28) pixels from 0 to 1.
        y: (N,) int64 classes; or (N, C) floats, multi-hot.
    """

    x: Tensor
    y: Tensor

    def __getitem__(self, rows: Any) -> "Split":
        """The rows of an index, a slice or a mask."""
        return Split(self.x[rows], self.y[rows])

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.y)


def embeddings(name: str, texts: Sequence[str], layers: int = 6) -> Tensor:
    """Unit embeddings (N, 384) of frozen all-MiniLM-L6-v2: means of the states of the real tokens.

    Args:
        name: of the file that keeps them, in CACHE.
        texts: what to embed.
        layers: after how many of the 6 layers.
    """
    digest = hashlib.sha256("\n".join([str(layers), *texts]).encode()).hexdigest()[:16]
    path = CACHE / f"{name}-{layers}-{digest}.safetensors"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".partial")
        save_file({"x": _encode(texts, layers)}, whole)
        whole.replace(path)
    return load_file(path)["x"]


@torch.no_grad()
def _encode(texts: Sequence[str], layers: int) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    model = AutoModel.from_pretrained(minilm()).eval()
    model.encoder.layer = model.encoder.layer[:layers]
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        batch = tokenizer(
            [texts[row] for row in rows],
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        weight = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state
        found[rows] = F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
    return found


@cache
def clinc(layers: int = 6) -> dict[str, Split]:
    """CLINC150 by split, 150 classes in alphabetical order of the intents."""
    names = intents()
    return {
        split: Split(
            embeddings(f"clinc150-{split}", [query for query, _ in rows], layers),
            torch.tensor([names.index(intent) for _, intent in rows]),
        )
        for split, rows in clinc150().items()
    }


def intents() -> list[str]:
    """The names of CLINC150's classes."""
    return sorted({intent for _, intent in clinc150()["train"]})


@cache
def goemotions(folder: Path) -> dict[str, Split]:
    """GoEmotions by split, 27 emotions and neutral, several a row."""
    found = {}
    for split, name in zip(SPLITS, ("train", "dev", "test"), strict=True):
        lines = _existing(folder / f"{name}.tsv", "goemotions").read_text(encoding="utf-8")
        rows = [line.split("\t") for line in lines.splitlines() if line.count("\t") == 2]
        y = torch.zeros(len(rows), EMOTIONS)
        for row, (_, labels, _) in enumerate(rows):
            y[row, [int(label) for label in labels.split(",")]] = 1
        found[split] = Split(embeddings(f"goemotions-{split}", [r[0] for r in rows]), y)
    return found


@cache
def mnist(folder: Path) -> dict[str, Split]:
    """MNIST's 10,000 test images, in an order of our own: 7,000 / 1,000 / 2,000."""
    images, labels = (
        gzip.decompress(_existing(folder / f"t10k-{name}-ubyte.gz", "mnist").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    # headers of four and two big-endian numbers
    x = torch.frombuffer(bytearray(images[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    y = torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8).long()
    whole = Split(x.float() / 255, y)[
        torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    ]
    ends = (0, len(y) * 7 // 10, len(y) * 8 // 10, len(y))
    return {
        name: whole[start:end] for name, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True)
    }


def _existing(path: Path, source: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; it is from {SOURCES[source]}.")
    return path
