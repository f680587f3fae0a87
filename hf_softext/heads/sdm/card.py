"""The README that is saved with a head."""

from typing import Any

_TEXT = """---
library_name: hf-softext
tags: [hf-softext, sdm, selective-classification]
---

# SDM head

Says of each prediction whether it may be relied on, and shows the training rows that speak for it.
It belongs behind {model} and no other model: its thresholds mean nothing elsewhere, and loading it
there is refused.

```python
import hf_softext  # registers the task "sdm-text-classification"
{usage}
```

| | |
|---|---|
| estimator | `{estimator}` |
| accuracy to hold in every class | {alpha} |
| classes | {classes} |
| training rows to compare with | {support} |
| calibration rows | {calibration} |
| least similarity | {similarity} |

The region is found on calibration rows that also chose the weights: measure accuracy and the share
that is admitted on rows that the fit has not seen. Under a shift of the data the accuracy need not
hold.

Method: A. Schmaltz, "Similarity-Distance-Magnitude Activations", arXiv 2509.12760.
"""
_TEXTS = """from transformers import pipeline
from hf_softext.heads.sdm import SdmHead
from hf_softext.heads.sdm.model import SdmForSequenceClassification

head = SdmHead.from_pretrained("this folder or repository")
verified = SdmForSequenceClassification.from_backbone(model, head)
pipeline("sdm-text-classification", model=verified, tokenizer=tokenizer)("a text")"""
_COMPLETE = """from transformers import pipeline

pipeline("sdm-text-classification", model="this folder or repository")("a text")"""
_FEATURES = """from hf_softext.heads.sdm import SdmHead

head = SdmHead.from_pretrained("this folder or repository")
output = head(features)"""


def card(head: Any, *, complete: bool) -> str:
    """Text of the README of an `SdmHead`.

    Args:
        head: the head.
        complete: the folder holds its backbone too.
    """
    config = head.config
    names = [head.label_name(label) for label in range(config.num_labels)]
    region = head.region
    usage = _COMPLETE if complete else _FEATURES if config.backbone is None else _TEXTS
    empty = bool(region.min_similarity.isinf())
    return _TEXT.format(
        model=f"`{(config.backbone or {}).get('name_or_path') or 'the model of its features'}`",
        usage=usage,
        estimator=config.estimator,
        alpha=config.alpha,
        classes=", ".join(map(str, names)),
        support=len(head.support_ids),
        calibration=len(head.calibration.labels),
        similarity="none: nothing is admitted" if empty else f"{float(region.min_similarity):.4g}",
    )
