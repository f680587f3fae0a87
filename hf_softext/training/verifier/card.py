"""The README that is saved with a fitted SDM head."""

import json
from pathlib import Path
from typing import Any

from hf_softext.heads.sdm.verifier_card import USAGE

_ALONE = """import hf_softext
from transformers import AutoTokenizer, {model_class}, pipeline

model = {model_class}.from_pretrained("{model}"{dtype})
tokenizer = AutoTokenizer.from_pretrained("{model}")
verified = hf_softext.SdmForSequenceClassification.from_pretrained("{folder}", model=model)
classify = pipeline("sdm-text-classification", model=verified, tokenizer=tokenizer)
print(classify("a text"))"""
_COMPLETE = """import hf_softext
from transformers import pipeline

classify = pipeline("sdm-text-classification", model="{folder}")
print(classify("a text"))"""
_CARD = """---
library_name: hf-softext
tags:
- hf-softext
- sdm
- {kind}
{base_model}---

```python
{usage}
```

# {folder}: which {what} of {model} may be relied on

Each comes with a verdict, and with the training rows that speak for it. It belongs to `{model}` and
no other model: loading it with another is refused.

| on {test_rows:,} rows of `{test_data}` | accuracy | share |
|---|---|---|
{scores}

- {region}
- fitted on {train_rows:,} rows of `{data}`; classes: {classes}
- {settings}
- hf_softext {hf_softext}, transformers {transformers}, torch {torch}

Under a shift of the data the accuracy need not hold.

Method: A. Schmaltz, "Similarity-Distance-Magnitude Activations", arXiv 2509.12760{more}.
"""
_GENERATION = ', and "Similarity-Distance-Magnitude Language Models", arXiv 2510.26183'
_SHOWN = ("pooling", "layers", "max_length", "dtype", "num_splits", "epochs", "learning_rate")


def write_head_card(
    folder: Path,
    facts: dict[str, Any],
    scores: dict[str, dict[str, float | None]],
    complete: bool,
) -> None:
    """Write `README.md` for an SDM head.

    Args:
        folder: where the head is going to be; its name is the head's.
        facts: how it was fitted, as `eval_results.json` has them.
        scores: on rows that the fit has not seen; may be empty.
        complete: whether the model is in the folder too.
    """
    generation, name = facts["task"] == "generation", folder.name
    usage = USAGE if generation else _COMPLETE if complete else _ALONE
    dtype = "" if facts["dtype"] == "auto" or complete else f', dtype="{facts["dtype"]}"'
    source = name if complete else facts["base_model"] or facts["model"]
    least = facts["least_similarity"]
    region = f"accuracy to hold in every class: {facts['alpha']:g}; "
    region += "nothing is admitted" if least is None else f"least similarity {least:.4g}"
    classes = facts["classes"]
    text = _CARD.format(
        usage=usage.format(
            model=source, folder=name, model_class=facts["model_class"], dtype=dtype
        ),
        folder=name,
        kind="selective-generation" if generation else "selective-classification",
        what="answers" if generation else "predictions",
        base_model=f"base_model: {facts['base_model']}\n" if facts["base_model"] else "",
        scores="\n".join(
            f"| {row} | {'none' if one['accuracy'] is None else format(one['accuracy'], '.4f')} "
            f"| {one['admitted']:.4f} |"
            for row, one in scores.items()
        )
        or "| not measured | | |",
        region=region,
        classes=", ".join(classes[:10]) + (", ..." if len(classes) > 10 else ""),
        settings=json.dumps({name: facts[name] for name in _SHOWN}),
        more=_GENERATION if generation else "",
        **{
            name: facts[name]
            for name in (
                *("model", "data", "test_data", "train_rows", "test_rows"),
                *("hf_softext", "transformers", "torch"),
            )
        },
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
