"""The README that is saved with a model."""

import json
import math
from pathlib import Path
from typing import Any

from hf_softext.catalog import Method, methods
from hf_softext.training.causal_lm.extrapolation import PasskeyScore

_ADOPTION = """---
library_name: transformers
tags:
- hf_softext
- {name}
{base_model}---

```python
import hf_softext  # without this line transformers refuses to load the checkpoint
from transformers import {model_class}

model = {model_class}.from_pretrained("{folder}")
```

# {source} with {name} attention

{source} ({model_class}), whose softmax attention was replaced by `{name}`: {summary}. The weights
were then trained to compute under it what they computed before (hidden states of every
layer{and_logits}).

| | before adoption | after |
|---|---|---|
| cosine to the original (mean-pooled last hidden states, held-out text) | {before:.4f} \
| {after:.4f} |

- attention block in `config.json`: `{block}`
- {steps} steps of {batch} examples, peak learning rate {learning_rate:g}, on {examples} texts from
  `{data}`; \
{held_out} held out
- hf_softext {version}, transformers {transformers_version}, torch {torch_version}

Reference: {authors}, "{title}", {year}, arXiv {arxiv}.
"""

_CAUSAL_LM = """---
library_name: transformers
pipeline_tag: text-generation
{tags}{base_model}---

```python
{import_line}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

# {folder}: {model_type} with {attention} attention

{parameters:,} parameters, trained {start} on windows of {length} tokens. Held-out text is the \
last part of `{data}`, which this training did not see.

| window, tokens | times the training length | loss, nats per token | perplexity |
|---|---|---|---|
{losses}
{passkeys}
- attention block in `config.json`: `{attention_block}`
- trained with the loss `{loss}`; the losses above are cross-entropy
{decoding}- {steps} steps of {windows_in_a_step} windows, peak learning rate {learning_rate:g}, \
seed {seed}, {train_tokens:,} tokens to
  train on, {held_out_tokens:,} held out; {passkey_share:.0%} of the windows hid a number and \
asked for it
- {device}; hf_softext {hf_softext}, transformers {transformers}, torch {torch}
{reference}"""

_STABLEMAX = """- its probabilities are StableMax of the logits, not softmax: sample with \
`hf_softext.stablemax_decoding(model)`
  around `generate`
"""


def write_adoption_card(folder: Path, row: Method, facts: dict[str, Any]) -> None:
    """Write `README.md` for an adopted model.

    Args:
        folder: where the checkpoint is.
        row: the catalogue row of the attention.
        facts: the remaining fields of the template.
    """
    paper = row.paper
    text = _ADOPTION.format(
        name=row.name,
        summary=row.summary,
        authors=paper.authors,
        title=paper.title,
        year=paper.year,
        arxiv=paper.arxiv,
        **facts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_causal_lm_card(
    folder: Path,
    name: str,
    facts: dict[str, Any],
    losses: dict[int, float],
    passkeys: list[PasskeyScore],
) -> None:
    """Write `README.md` for a causal language model.

    Args:
        folder: where the checkpoint is.
        name: what it will be called.
        facts: how it was trained: the fields of the template.
        losses: nats per held-out token for each length.
        passkeys: scores for each length and depth; may be empty.
    """
    row = {row.name: row for row in methods("attention")}.get(facts["attention"])
    trained_at = facts["length"]
    text = _CAUSAL_LM.format(
        **{k: v for k, v in facts.items() if k not in ("attention_block", "base_model", "loss")},
        loss=facts["loss"]["name"],
        decoding=_STABLEMAX if facts["loss"]["name"] == "stablemax_ce" else "",
        folder=name,
        tags="" if row is None else f"tags:\n- hf_softext\n- {row.name}\n",
        attention_block=json.dumps(facts["attention_block"]),
        base_model=f"base_model: {facts['base_model']}\n" if facts["base_model"] else "",
        import_line=""
        if row is None
        else "import hf_softext  # without this line transformers refuses to load the checkpoint\n",
        start=f"further from {facts['source']}" if facts["source"] else "from scratch",
        losses="\n".join(
            f"| {length} | {length / trained_at:g} | {loss:.4f} | {math.exp(loss):.3f} |"
            for length, loss in losses.items()
        ),
        passkeys=_passkey_table(passkeys),
        reference=""
        if row is None
        else f'\nReference: {row.paper.authors}, "{row.paper.title}", {row.paper.year}, arXiv '
        f"{row.paper.arxiv}.\n",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _passkey_table(scores: list[PasskeyScore]) -> str:
    if not scores:
        return ""
    depths = sorted({score.depth for score in scores})
    found = {(score.length, score.depth): score.accuracy for score in scores}
    rows = [
        f"| {length} | " + " | ".join(f"{found[length, depth]:.0%}" for depth in depths) + " |"
        for length in sorted({score.length for score in scores})
    ]
    return "\n".join(
        [
            "",
            f"Passkey retrieval: share of {scores[0].windows} windows in which the hidden number "
            "was found, by depth.",
            "",
            "| window, tokens | " + " | ".join(f"{depth:.0%}" for depth in depths) + " |",
            "|---" * (len(depths) + 1) + "|",
            *rows,
            "",
        ]
    )
