"""Few-shot classification of short texts with all-MiniLM-L6-v2, adapters in its top layers."""

import csv
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _adapter_fit import Outcome, fit, one_step
from _adapter_methods import ALL, HEAD, OUTPUTS, QUERIES, Method, attach, groups, trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from hf_softext.demo.corpora import clinc150
from hf_softext.demo.sentence import minilm

CACHE = Path(__file__).parents[1] / "build" / "adapters"
TOP, LONGEST, DRAWS = 2, 64, 3
SITES = {
    OUTPUTS: ["output.dense"],
    QUERIES: ["query", "value"],
    ALL: ["query", "key", "value", "dense"],
}
Texts = list[tuple[str, str]]


@dataclass(frozen=True)
class Rows:
    """Hidden states of texts, and their classes.

    Attributes:
        states: (T, D), the tokens of all texts one after the other.
        lengths: (N,) int64.
        labels: (N,) int64.
    """

    states: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, L, D), where there is a token (B, L), and labels (B,)."""
        ends = self.lengths.cumsum(0)
        parts = [self.states[ends[row] - self.lengths[row] : ends[row]] for row in rows]
        lengths = self.lengths[rows]
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True), real, self.labels[rows]


class Top(nn.Module):
    """The top layers of an encoder, the mean over the tokens, and a linear head on its direction.

    Args:
        layers: of a BERT.
        centres: (C, D), unit rows; the head starts as the classifier by the nearest of them.
    """

    def __init__(self, layers: nn.ModuleList, centres: Tensor):
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(centres.shape[1], len(centres))
        self.head.weight.data.copy_(centres)
        nn.init.zeros_(self.head.bias)

    def embed(self, states: Tensor, real: Tensor) -> Tensor:
        """Unit embeddings (B, D)."""
        mask = None if real.all() else real[:, None, None, :]
        for layer in self.layers:
            states = layer(states, attention_mask=mask)
        summed = (states * real[..., None]).sum(1)
        return F.normalize(summed, dim=-1)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classify(self.embed(states, real))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits of unit embeddings, brought to the length of normal vectors."""
        return self.head(embeddings * embeddings.shape[-1] ** 0.5)


class TextTask:
    """A task of `adapters.py`: accuracy.

    The head is trained with every adapter, at a rate of its own: that which is best for the head
    alone. For each seed other training rows are drawn.

    Args:
        name: in the CSV.
        layers: the frozen ones that get adapters.
        train: the rows of each draw.
        valid: to choose by.
        test: to report.
        plan: "epochs" and "batch", and what else places the figures.

    Attributes:
        head_rate: of the head beside an adapter, to be set before one is trained.
    """

    sign, shift = 1, 0
    head_rate = 1e-3

    def __init__(
        self,
        name: str,
        layers: nn.ModuleList,
        train: list[Rows],
        valid: Rows,
        test: Rows,
        plan: dict[str, Any],
    ):
        self.name, self.layers, self.train = name, layers.eval(), train
        self.valid, self.test, self.plan = valid, test, plan
        self._frozen: dict[int, Tensor] = {}

    def run(self, method: Method, rate: float, seed: int) -> Outcome:
        """Train one adapter and the head."""
        train = self.train[seed]
        model, adapter = self._build(method, seed)
        steps = self.plan["epochs"] * -(-len(train) // self.plan["batch"])
        heads = {"params": list(model.head.parameters())}
        if method.label == HEAD:
            x = self._embeddings(train)

            def of(rows: Tensor) -> Tensor:
                return F.cross_entropy(model.classify(x[rows]), train.labels[rows])

            given = [{**heads, "lr": rate}]
        else:

            def of(rows: Tensor) -> Tensor:
                states, real, labels = train.batch(rows)
                return F.cross_entropy(model(states, real), labels)

            given = [*groups(method, model.layers, rate), {**heads, "lr": self.head_rate}]
        fit(given, ((lambda rows=rows: of(rows)) for rows in self._order(train, seed)), steps)
        whole = adapter + trained(model.head)
        return Outcome(
            self._accuracy(method, model, self.valid),
            lambda: self._accuracy(method, model, self.test),
            adapter,
            whole,
        )

    def step(self, method: Method) -> Callable[[], None]:
        """On the first rows; of the head alone with the layers below it, which do not train."""
        model, _ = self._build(method, 0)
        states, real, labels = self.train[0].batch(torch.arange(self.plan["batch"]))
        parameters = [weight for weight in model.parameters() if weight.requires_grad]
        return one_step(parameters, lambda: F.cross_entropy(model(states, real), labels))

    def _build(self, method: Method, seed: int) -> tuple[Top, int]:
        layers = deepcopy(self.layers)
        train = self.train[seed]
        x = self._embeddings(train)
        means = torch.stack([x[train.labels == c].mean(0) for c in range(_classes(train))])
        attach(method, layers, SITES, seed)
        layers.eval()
        return Top(layers, F.normalize(means, dim=-1)), trained(layers)

    @torch.no_grad()
    def _embeddings(self, rows: Rows) -> Tensor:
        """Without an adapter."""
        if id(rows) not in self._frozen:
            top = Top(self.layers, torch.zeros(1, rows.states.shape[1]))
            found = torch.empty(len(rows), rows.states.shape[1])
            for chosen in _by_length(rows):
                found[chosen] = top.embed(*rows.batch(chosen)[:2])
            self._frozen[id(rows)] = found
        return self._frozen[id(rows)]

    @torch.no_grad()
    def _accuracy(self, method: Method, model: Top, rows: Rows) -> float:
        if method.label == HEAD:
            right = model.classify(self._embeddings(rows)).argmax(-1) == rows.labels
            return right.float().mean().item()
        right = 0
        for chosen in _by_length(rows):
            states, real, labels = rows.batch(chosen)
            right += (model(states, real).argmax(-1) == labels).sum().item()
        return right / len(rows)

    def _order(self, rows: Rows, seed: int) -> Iterator[Tensor]:
        """Random batches, of texts of like lengths: what is padded is computed for nothing."""
        drawn, size = torch.Generator().manual_seed(seed), self.plan["batch"]
        while True:
            order = torch.randperm(len(rows), generator=drawn)
            batches: list[Tensor] = []
            for part in order.split(8 * size):
                batches += part[rows.lengths[part].argsort()].split(size)
            yield from (batches[i] for i in torch.randperm(len(batches), generator=drawn).tolist())


def _by_length(rows: Rows, size: int = 64) -> tuple[Tensor, ...]:
    return rows.lengths.argsort().split(size)


def _classes(rows: Rows) -> int:
    return int(rows.labels.max()) + 1


def clinc(few: Mapping[str, int]) -> tuple[list[Texts], Texts, Texts]:
    """CLINC150: draws to train on, rows to choose by and to test on, so many a class."""
    splits = clinc150()
    train = [_few(splits["train"], few["train"], seed) for seed in range(DRAWS)]
    return train, _few(splits["val"], few["valid"], 0), _few(splits["test"], few["test"], 0)


def banking(folder: Path, few: Mapping[str, int]) -> tuple[list[Texts], Texts, Texts]:
    """Banking77, from train.csv and test.csv; the rows to choose by are training rows set aside.

    Raises:
        FileNotFoundError: they are not there.
    """
    found = {}
    for name in ("train", "test"):
        path = folder / f"{name}.csv"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there; train.csv and test.csv are those of "
                "github.com/PolyAI-LDN/task-specific-datasets, banking_data."
            )
        with path.open(newline="", encoding="utf-8") as file:
            found[name] = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    valid = _few(found["train"], few["valid"], 0)
    aside = set(valid)
    rest = [row for row in found["train"] if row not in aside]
    train = [_few(rest, few["train"], seed) for seed in range(DRAWS)]
    return train, valid, _few(found["test"], few["test"], 0)


def _few(texts: Texts, count: int, seed: int) -> Texts:
    by_class: dict[str, Texts] = {}
    for row in texts:
        by_class.setdefault(row[1], []).append(row)
    chosen = random.Random(seed)
    return [row for _, rows in sorted(by_class.items()) for row in chosen.sample(rows, count)]


def states(name: str, texts: Texts, classes: list[str]) -> Rows:
    """What all-MiniLM-L6-v2 makes of texts below its top layers, kept under build/."""
    labels = torch.tensor([classes.index(label) for _, label in texts])
    said = "\n".join([str(TOP), *(text for text, _ in texts)])
    path = CACHE / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".partial")
        save_file(_encode([text for text, _ in texts]), staged)
        staged.replace(path)
    kept = load_file(path)
    return Rows(kept["states"], kept["lengths"], labels)


@torch.no_grad()
def _encode(texts: list[str]) -> dict[str, Tensor]:
    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm())
    model.eval().encoder.layer = model.encoder.layer[:-TOP]
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        batch = tokenizer(
            [texts[row] for row in rows],
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )
        real = batch["attention_mask"].bool()
        for row, one, kept in zip(rows, model(**batch).last_hidden_state, real, strict=True):
            found[row] = one[kept]
    return {"states": torch.cat(found), "lengths": torch.tensor([len(one) for one in found])}


def top_layers() -> nn.ModuleList:
    """Of all-MiniLM-L6-v2."""
    return AutoModel.from_pretrained(minilm()).encoder.layer[-TOP:]


def text_task(name: str, texts: tuple[list[Texts], Texts, Texts], plan: dict[str, Any]) -> TextTask:
    """A task of texts."""
    train, valid, test = texts
    classes = sorted({label for _, label in test})
    drawn = [states(f"{name}-train", rows, classes) for rows in train]
    others = [states(f"{name}-{part}", rows, classes) for part, rows in enumerate((valid, test))]
    return TextTask(name, top_layers(), drawn, others[0], others[1], plan)
