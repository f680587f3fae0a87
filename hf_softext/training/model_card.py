"""The README that is saved with an adopted model."""

from pathlib import Path
from typing import Any

from hf_softext.catalog import Method

_TEMPLATE = """---
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


def write_adoption_card(folder: Path, row: Method, facts: dict[str, Any]) -> None:
    """Write `README.md` for an adopted model.

    Args:
        folder: where the checkpoint is.
        row: the catalogue row of the attention.
        facts: the remaining fields of the template.
    """
    paper = row.paper
    text = _TEMPLATE.format(
        name=row.name,
        summary=row.summary,
        authors=paper.authors,
        title=paper.title,
        year=paper.year,
        arxiv=paper.arxiv,
        **facts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
