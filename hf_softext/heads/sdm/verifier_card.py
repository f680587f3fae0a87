"""The README that is saved with a verifier."""

import os
from pathlib import Path
from typing import Any

USAGE = """import hf_softext
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{model}"{dtype})
tokenizer = AutoTokenizer.from_pretrained("{model}")
verifier = hf_softext.SdmVerifier.from_pretrained("{folder}", model, tokenizer)
for answer in hf_softext.generate_verified(model, verifier, ["a prompt"], max_new_tokens=50):
    print(answer.verdict.admit, answer.text)"""
_TEXT = """---
library_name: hf-softext
tags: [hf-softext, sdm, selective-generation]
---

```python
{usage}
```

# Verifier of answers

Says of each answer of `{model}` whether it may be relied on, and shows the training answers that
speak for it. It belongs to this model and no other: loading it with another is refused.

| | |
|---|---|
| accuracy to hold, good and bad | {alpha} |
| training answers to compare with | {support} |
| calibration answers | {calibration} |
| least similarity | {similarity} |

The region is found on calibration answers that also chose the weights: measure accuracy and the
share that is admitted on answers that the fit has not seen. Under a shift of the data the accuracy
need not hold.

Method: A. Schmaltz, "Similarity-Distance-Magnitude Language Models", arXiv 2510.26183, and
"Similarity-Distance-Magnitude Activations", arXiv 2509.12760.
"""


def write_verifier_card(path: Path, head: Any) -> None:
    """Write the README of a verifier's `SdmHead`; it appears whole or not at all."""
    model = (head.config.backbone or {}).get("name_or_path") or "the model of its answers"
    # the name of a folder means nothing elsewhere
    model = Path(model).name if Path(model).is_absolute() else model
    empty = bool(head.region.min_similarity.isinf())
    text = _TEXT.format(
        usage=USAGE.format(model=model, dtype="", folder="this folder or repository"),
        model=model,
        alpha=head.config.alpha,
        support=len(head.support_ids),
        calibration=len(head.calibration.labels),
        similarity="none: nothing is admitted"
        if empty
        else f"{float(head.region.min_similarity):.4g}",
    )
    staged = path.with_name(f"{path.name}.tmp")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)
