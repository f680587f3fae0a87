"""A small Llama that has learnt Shakespeare byte by byte, and is adapted to Python."""

import hashlib
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _adapter_fit import Outcome, fit, one_step
from _adapter_methods import ALL, HEAD, OUTPUTS, QUERIES, Method, attach, groups, trained
from _quantization_models import corpus
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_softext.demo.corpora import shakespeare

CACHE = Path(__file__).parents[1] / "build" / "adapters"
SIZES = {
    "vocab_size": 256,
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
BASE = {"steps": 500, "batch": 16, "length": 128, "rate": 3e-3}
SITES = {
    OUTPUTS: ["o_proj", "down_proj"],
    QUERIES: ["q_proj", "v_proj"],
    ALL: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


class LanguageTask:
    """A task of `adapters.py`: loss in nats a byte.

    No head is trained with an adapter: "head alone" is one of the adapters here.

    Args:
        name: in the CSV.
        model: a Llama over bytes, frozen.
        train: (T,) int64 bytes.
        valid: (N, L) windows to choose by.
        test: (N, L) windows to report.
        plan: "steps", "batch" and "length", and what else places the figures.
    """

    sign, shift = -1, 1

    def __init__(
        self,
        name: str,
        model: LlamaForCausalLM,
        train: Tensor,
        valid: Tensor,
        test: Tensor,
        plan: dict[str, Any],
    ):
        self.name, self.model, self.train = name, model.eval(), train
        self.valid, self.test, self.plan = valid, test, plan

    def run(self, method: Method, rate: float, seed: int) -> Outcome:
        """Train one adapter, or the head."""
        model = self._build(method, seed)
        plan = self.plan
        batches = windows(self.train, plan["batch"], plan["length"], seed)
        losses = ((lambda batch=batch: loss(model, batch)) for batch in batches)
        fit(groups(method, model, rate), losses, plan["steps"])
        whole = trained(model)
        return Outcome(
            mean_loss(model, self.valid),
            lambda: mean_loss(model, self.test),
            whole,
            whole,
        )

    def step(self, method: Method) -> Callable[[], None]:
        """On the first windows."""
        model = self._build(method, 0)
        batch = next(windows(self.train, self.plan["batch"], self.plan["length"], 0))
        parameters = [weight for weight in model.parameters() if weight.requires_grad]
        return one_step(parameters, lambda: loss(model, batch))

    def _build(self, method: Method, seed: int) -> LlamaForCausalLM:
        model = deepcopy(self.model)
        attach(method, model, SITES, seed)
        if method.label == HEAD:
            model.lm_head.requires_grad_(True)
        return model.eval()


def windows(stream: Tensor, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """Random windows (B, L), without an end."""
    drawn = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(stream) - length + 1, (batch, 1), generator=drawn)
        yield stream[starts + torch.arange(length)]


def loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean over the bytes that have one before them."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Over windows of one length."""
    return sum(loss(model, batch).item() * len(batch) for batch in rows.split(16)) / len(rows)


def base() -> LlamaForCausalLM:
    """The model of 1.3 million parameters, trained where it is missing; some minutes."""
    said = json.dumps([SIZES, BASE], sort_keys=True)
    folder = CACHE / f"base-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if not folder.exists():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
        stream = as_bytes(shakespeare()[0])
        batches = windows(stream, BASE["batch"], BASE["length"], 0)
        losses = ((lambda batch=batch: loss(model, batch)) for batch in batches)
        fit([{"params": list(model.parameters()), "lr": BASE["rate"]}], losses, BASE["steps"])
        staged = folder.with_suffix(".partial")
        model.save_pretrained(staged)
        staged.rename(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def as_bytes(text: str) -> Tensor:
    """(T,) int64."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def python_text(train: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Bytes of the standard library: to train on, and of other files."""
    parts = []
    with corpus().open(encoding="utf-8") as lines:
        for wanted in (train, held_out):
            texts = []
            for line in lines:
                # no file may be most of it
                texts.append(json.loads(line)["text"][:16384])
                if sum(map(len, texts)) > wanted:
                    break
            parts.append(as_bytes("".join(texts))[:wanted])
    return parts[0], parts[1]


def python_task(plan: dict[str, Any]) -> LanguageTask:
    """From Shakespeare to Python."""
    length = plan["length"]
    held_out = length * (plan["valid"] + plan["test"])
    train, rest = python_text(plan["train"], held_out)
    rows = rest[: len(rest) // length * length].view(-1, length)
    # every so many-th window to choose by, so that both are of all files
    every = (plan["valid"] + plan["test"]) // plan["valid"]
    chosen = torch.arange(len(rows)) % every == 0
    return LanguageTask("python", base(), train, rows[chosen], rows[~chosen], plan)
