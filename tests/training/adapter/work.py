"""What the tests of the adapter trainer share: tiny checkpoints, arguments, cards that are run."""

import json
import random

import pytest
import torch
import transformers as hf

from hf_softext.data.texts import read_corpus
from hf_softext.training.adapter.arguments import (
    AdapterCausalLMArguments,
    AdapterClassifierArguments,
)
from hf_softext.training.causal_lm.data import split_stream, token_stream
from hf_softext.training.causal_lm.extrapolation import loss_by_length
from tests.training.classifier.test_run import topics, write
from tests.training.conftest import WORDS, save_model

QUICK = {
    "per_device_train_batch_size": 9,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}
BITS = {"bits": 3, "nsamples": 16}


def masked_lm(folder, dropout=0.1):
    """A checkpoint without a pooler, as most encoders are published."""
    config = hf.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=42,
        pad_token_id=0,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return save_model(hf.BertForMaskedLM(config), folder)


def labelled(folder):
    """Texts to train on, and others to test on."""
    rows = topics()
    return {
        "data": write(folder / "rows.jsonl", rows[:72]),
        "test_data": write(folder / "test.jsonl", rows[72:]),
    }


def running(folder):
    """A text whose words follow a pattern."""
    choose = random.Random(0)
    path = folder / "text.txt"
    starts = [choose.randrange(30) for _ in range(200)]
    path.write_text(" ".join(w for s in starts for w in WORDS[s : s + 8]), encoding="utf-8")
    return str(path)


def classifier(out, model, data, **given):
    """Arguments of a short training of a classifier."""
    plain = QUICK | {"num_train_epochs": 10, "learning_rate": 0.02} | data
    return AdapterClassifierArguments(output_dir=str(out), model=str(model), **{**plain, **given})


def language_model(out, model, text, **given):
    """Arguments of a short training of a language model."""
    plain = QUICK | {"length": 16, "test_factors": [1, 2], "test_tokens": 128, "max_steps": 20}
    plain |= {"data": text, "learning_rate": 0.02}
    return AdapterCausalLMArguments(output_dir=str(out), model=str(model), **{**plain, **given})


def code_of(folder):
    """The lines of a card that say how to load the adapter."""
    return (folder / "README.md").read_text(encoding="utf-8").split("```")[1].removeprefix("python")


def load_as_said(folder):
    """Run those lines, which are for a program that runs beside the folder."""
    space = {}
    exec(code_of(folder), space)
    return space["model"].eval(), space["tokenizer"]


@torch.no_grad()
def loss_of(model, tokenizer, test_data):
    """Mean cross-entropy of a classifier on a file of labelled texts."""
    rows, total = read_rows(test_data), 0.0
    # in batches as the Trainer takes them: a quantized layer rounds few rows in another way
    for start in range(0, len(rows), 8):
        part = rows[start : start + 8]
        batch = tokenizer([row["text"] for row in part], return_tensors="pt", padding=True)
        labels = torch.tensor([model.config.label2id[row["label"]] for row in part])
        logits = model(**batch).logits
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    return total / len(rows)


def losses_of(model, tokenizer, text, amount=128):
    """As the training of a language model measures it."""
    stream = token_stream(read_corpus(text, "text"), tokenizer)
    return loss_by_length(model, split_stream(stream, 0.1, 16)[1], [16, 32], amount=amount)


def read_rows(path):
    """Of a .jsonl file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def measured(loss):
    """Equal but for the order of a sum."""
    return pytest.approx(loss, abs=1e-6)
