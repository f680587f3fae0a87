"""A small Llama on bytes of Shakespeare, trained short and tested long, under five attentions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.apply import apply_attention
from hf_softext.attention.parameters import Number
from hf_softext.demo.corpora import shakespeare
from hf_softext.functional import masked_softmax
from hf_softext.registration import explicit_mask
from hf_softext.training.causal_lm.data import Windows
from hf_softext.training.causal_lm.extrapolation import loss_by_length

PROMPT = "ROMEO:\n"

# the baseline that a sceptic asks for: the scores of the softplus methods, exp instead of softplus
COSINE_SOFTMAX = AttentionMethod(
    name="softmax_cosine_log_n",
    weights=masked_softmax,
    cosine=True,
    parameters={"scale": Number(default=None, low=0, high=1e4, above_low=True)},
)


@dataclass(frozen=True)
class Variant:
    """One attention to train with."""

    label: str
    attention: str
    parameters: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("softmax", "sdpa"),
    Variant("softmax + QK-norm + log N", COSINE_SOFTMAX.name),
    Variant("softplus", "softplus"),
    Variant("softplus_reweighted, p = 3", "softplus_reweighted", {"power": 3}),
    Variant("softplus_reweighted, p = 15", "softplus_reweighted", {"power": 15}),
)


@dataclass(frozen=True)
class Budget:
    """How much to train and test.

    Attributes:
        length: training length in bytes; tests go up to 16 times that.
        steps: optimizer steps.
        batch: windows in a step.
        test_bytes: bytes of held-out text for each test length.
    """

    length: int
    steps: int
    batch: int
    test_bytes: int


@dataclass
class Outcome:
    """What one variant reached: loss in nats per byte for each test length, and a sample of its
    text."""

    variant: Variant
    losses: dict[int, float]
    sample: str


def encode(text: str) -> Tensor:
    """UTF-8 bytes as token ids."""
    return torch.tensor(list(text.encode()), dtype=torch.long)


def decode(ids: Tensor) -> str:
    """Token ids back to text."""
    return bytes(ids.tolist()).decode(errors="replace")


def register_reference(method: AttentionMethod) -> None:
    """Make an attention that is no method of the catalogue known to transformers by its name."""
    AttentionInterface.register(method.name, method.forward)
    AttentionMaskInterface.register(method.name, explicit_mask)


def build(variant: Variant, seed: int = 0) -> LlamaForCausalLM:
    """A fresh byte-level Llama, the same initial weights for every variant."""
    register_reference(COSINE_SOFTMAX)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config)
    if variant.attention in ("sdpa", COSINE_SOFTMAX.name):
        model.set_attn_implementation(variant.attention)
    else:
        apply_attention(model, variant.attention, **variant.parameters)
    return model


def train(model: LlamaForCausalLM, budget: Budget, work: Path) -> None:
    """Train with the stock Trainer."""
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=budget.steps,
        per_device_train_batch_size=budget.batch,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        seed=0,
        use_cpu=True,
    )
    Trainer(
        model=model, args=arguments, train_dataset=Windows(encode(shakespeare()[0]), budget.length)
    ).train()


@torch.no_grad()
def sample(model: Any, length: int) -> str:
    """Text that follows a fixed prompt."""
    torch.manual_seed(0)
    prompt = encode(PROMPT)[None]
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=length,
        do_sample=True,
        temperature=0.8,
        top_k=None,
        pad_token_id=0,
    )
    return decode(ids[0])


def run_variant(variant: Variant, budget: Budget, work: Path) -> tuple[Outcome, LlamaForCausalLM]:
    """Train one variant and measure it."""
    model = build(variant)
    train(model, budget, work)
    model.eval()
    test = encode(shakespeare()[1])[: budget.test_bytes]
    losses = loss_by_length(model, test, [factor * budget.length for factor in (1, 2, 4, 8, 16)])
    return Outcome(variant, losses, sample(model, 2 * budget.length)), model


def round_trip(model: LlamaForCausalLM, folder: Path) -> str:
    """Save, reload with nothing but the folder's name, and compare logits and generated text.

    Returns:
        What was found, in one line.

    Raises:
        RuntimeError: the reloaded model differs.
    """
    model.save_pretrained(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = encode(shakespeare()[1])[None, :200]
    with torch.no_grad():
        same = torch.equal(model(ids).logits, reloaded(ids).logits)
    if not same or sample(model, 40) != sample(reloaded, 40):
        raise RuntimeError(
            f"the model reloaded from {folder} differs from the one that was saved there"
        )
    name = reloaded.config._attn_implementation
    return f"reloaded as {name!r}: logits bitwise equal, generated text equal"
