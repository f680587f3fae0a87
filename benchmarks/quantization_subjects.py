"""The models that are quantized, what they are calibrated on and how they are measured.

All methods see the same calibration sequences and are measured on the same held-out data.
"""

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from _quantization_models import LENGTH, streams, trained
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_softext.demo.corpora import clinc150
from hf_softext.demo.sentence import Ruler, Scale, minilm
from hf_softext.quantization.baq.blocks import Targets, find_targets

TOKENS_IN_A_BATCH = 8192


class Subject:
    """A model on disk.

    Attributes:
        folder: of the checkpoint.
        loader: the auto class that loads it.
        seqlen: tokens of the longest calibration sequence.
    """

    folder: Path
    loader: type = AutoModel
    seqlen: int

    def load(self, folder: Path | None = None, **options: object) -> PreTrainedModel:
        """The model in float32, from another folder where one is given."""
        source = str(folder or self.folder)
        return self.loader.from_pretrained(source, dtype=torch.float32, **options).eval()

    def targets(self, model: nn.Module) -> Targets:
        """What is quantized: the linear layers of the blocks."""
        return find_targets(model)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights, so that figures of another training are not mixed with these."""
        data = (self.folder / "model.safetensors").read_bytes()
        return hashlib.sha256(data).hexdigest()[:12]

    def calibration(self) -> list[list[int]]:
        """Token ids, drawn once; nothing of what is measured is in them."""
        raise NotImplementedError

    def batches(self) -> Iterator[Tensor]:
        """The calibration sequences in batches of one length each, so that nothing is padded."""
        by_length: dict[int, list[list[int]]] = {}
        for row in self.calibration():
            by_length.setdefault(len(row), []).append(row)
        for length, rows in sorted(by_length.items()):
            yield from torch.tensor(rows).split(max(1, TOKENS_IN_A_BATCH // length))

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """What the model is worth."""
        raise NotImplementedError


class LanguageModel(Subject):
    """One of the two trained byte-level models: perplexity on held-out files, and there the
    divergence from the float32 model's predictions, which tells small losses apart: noise in the
    weights may by chance, or by making a model less sure, also lower its perplexity.

    Args:
        kind: "llama" or "opt".
        samples: calibration sequences.
        windows: held-out windows, spread evenly.
    """

    loader, seqlen = AutoModelForCausalLM, LENGTH

    def __init__(self, kind: str, samples: int = 128, windows: int = 256):
        self.folder, self.samples, self.windows = trained(kind), samples, windows

    @cached_property
    def _streams(self) -> tuple[Tensor, Tensor]:
        return streams()

    def calibration(self) -> list[list[int]]:
        """Windows of the files that the model was trained on."""
        rows = _windows(self._streams[0])
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        return rows[drawn[: self.samples]].tolist()

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """exp of the mean loss of a token given those before it in its window, and the mean of
        KL(float32 | quantized) in thousandths of a nat."""
        loss = divergence = 0.0
        for batch, expected in zip(self._held_out, self._expected, strict=True):
            found = self._predictions(model, batch)
            loss += F.nll_loss(found, batch[:, 1:].flatten(), reduction="sum").item()
            divergence += F.kl_div(found, expected, reduction="sum", log_target=True).item()
        tokens = sum(batch[:, 1:].numel() for batch in self._held_out)
        return {"perplexity": math.exp(loss / tokens), "divergence": 1000 * divergence / tokens}

    @cached_property
    def _held_out(self) -> tuple[Tensor, ...]:
        rows = _windows(self._streams[1])
        return rows[torch.arange(self.windows) * len(rows) // self.windows].long().split(16)

    @cached_property
    def _expected(self) -> list[Tensor]:
        model = self.load()
        return [self._predictions(model, batch) for batch in self._held_out]

    @staticmethod
    def _predictions(model: PreTrainedModel, batch: Tensor) -> Tensor:
        return model(input_ids=batch).logits[:, :-1].float().flatten(0, 1).log_softmax(-1)


class SentenceEncoder(Subject):
    """all-MiniLM-L6-v2; cosine to the float32 embeddings of CLINC150's test queries and accuracy of
    a probe on its 150 intents. The probe is trained on the quantized model's own embeddings.

    Args:
        samples: calibration sequences: training queries, spread evenly over the intents.
        train_rows: queries to train the probe on.
        test_rows: queries to measure on.
    """

    seqlen = 64

    def __init__(self, samples: int = 500, train_rows: int = 3000, test_rows: int = 1500):
        self.folder, self.samples = Path(minilm()), samples
        self.scale = Scale(train_rows=train_rows, test_rows=test_rows, long_rows=8)

    @cached_property
    def _ruler(self) -> Ruler:
        return Ruler(str(self.folder), self.scale)

    def calibration(self) -> list[list[int]]:
        """Training queries with their special tokens."""
        queries = [query for query, _ in clinc150()["train"]]
        chosen = [queries[index * len(queries) // self.samples] for index in range(self.samples)]
        tokenizer = AutoTokenizer.from_pretrained(str(self.folder))
        return tokenizer(chosen, truncation=True, max_length=self.seqlen)["input_ids"]

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Mean cosine and accuracy."""
        found = self._ruler.measure(model)
        return {"cosine": found.cosine, "accuracy": found.probe}


SUBJECTS = {
    "llama": lambda: LanguageModel("llama"),
    "opt": lambda: LanguageModel("opt"),
    "minilm": SentenceEncoder,
}


def _windows(stream: Tensor) -> Tensor:
    return stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
