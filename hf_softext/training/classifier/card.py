"""The README that is saved with a classifier."""

import json
from pathlib import Path
from typing import Any

from hf_softext.catalog import find, methods

_CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- hf_softext
- {loss_name}
{base_model}---

```python
{import_line}from transformers import pipeline

classifier = pipeline("text-classification", model="{folder}")
```

# {folder}: {source}, trained with `{loss_name}`

{classes_line}, trained on {train_rows:,} texts of `{data}`{frozen}.

| on {test_rows:,} texts of `{test_data}` | |
|---|---|
{scores}

- loss: `{loss}`
- {steps} steps of {batch} texts, peak learning rate {learning_rate:g}, seed {seed}, {device}
- hf_softext {hf_softext}, transformers {transformers}, torch {torch}

Reference of the loss: {authors}, "{title}", {year}, arXiv {arxiv}.
"""


def write_classifier_card(
    folder: Path, name: str, facts: dict[str, Any], scores: dict[str, float]
) -> None:
    """Write `README.md` for a classifier.

    Args:
        folder: where the checkpoint is.
        name: what it will be called.
        facts: how it was trained: the fields of the template.
        scores: on the test set.
    """
    loss = find(facts["loss"]["name"], "loss")
    ours = facts["attention"] in [row.name for row in methods("attention")]
    text = _CARD.format(
        **{k: v for k, v in facts.items() if k not in ("base_model", "loss", "frozen")},
        folder=name,
        loss_name=loss.name,
        loss=json.dumps(facts["loss"]),
        base_model=f"base_model: {facts['base_model']}\n" if facts["base_model"] else "",
        import_line="import hf_softext  # its attention\n" if ours else "",
        classes_line=f"{facts['classes']} classes" if facts["classes"] else "A regression",
        frozen=", the head alone" if facts["frozen"] else "",
        scores="\n".join(f"| {key} | {value:.4f} |" for key, value in scores.items()),
        authors=loss.paper.authors,
        title=loss.paper.title,
        year=loss.paper.year,
        arxiv=loss.paper.arxiv,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
