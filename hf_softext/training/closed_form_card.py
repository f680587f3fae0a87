"""The README of a checkpoint whose head `from_pretrained` does not know of."""

import os
from pathlib import Path
from typing import Any

from hf_softext.training.problem import bare

_CARD = """---
library_name: transformers
tags:
- hf_softext
- snnk
---

```python
import hf_softext
{imports}

model = {load}
model.{place} = hf_softext.SnnkHead.from_pretrained("{folder}")
```

# {kind} with a head on random features

The head, `{place}`, was fitted in closed form to {rows:,} rows (ridge {ridge:g}, mean squared error
{error:.4g}). It lies in `snnk_head.json` and `snnk_head.safetensors`: what `from_pretrained` alone
makes, with a warning, is the model with an untrained head of its own. Its outputs estimate
probabilities; they are no logits.
"""


def write_closed_form_card(folder: Path, name: str, model: Any, place: str, **fit: Any) -> None:
    """Write how a checkpoint with an `SnnkHead` is loaded, unless there is a README.

    Args:
        folder: the checkpoint.
        name: what the folder will be called.
        model: that was saved.
        place: name of the head in it.
        **fit: `rows`, `ridge` and `error`.
    """
    path, inner = folder / "README.md", bare(model)
    if path.exists():
        return
    kind = type(inner).__name__
    if type(inner).__module__.startswith("transformers."):
        imports = f"from transformers import {kind}"
        load = f'{kind}.from_pretrained("{name}")'
    else:
        imports, load = f"# and {kind}, which is a class of your own", "..."
    text = _CARD.format(folder=name, imports=imports, load=load, kind=kind, place=place, **fit)
    part = path.with_suffix(".tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
