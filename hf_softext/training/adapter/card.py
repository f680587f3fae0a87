"""The README that is saved with an adapter."""

import json
from pathlib import Path
from typing import Any

from hf_softext.catalog import methods
from hf_softext.training.adapter.base import BASE

_HEAD = """---
library_name: peft
pipeline_tag: {pipeline}
tags:
- hf_softext
- {adapter}
{base_model}---

```python
import hf_softext  # {why}
from peft import PeftModel
from transformers import {imports}

{load}
model = PeftModel.from_pretrained(model, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

"""
_ELSEWHERE = """config = AutoConfig.from_pretrained("{folder}", subfolder="{base}")
model = {kind}.from_pretrained("{source}", config=config)"""
_BESIDE = """model = {kind}.from_pretrained("{folder}/{base}")"""
_SECTION = """
## The adapter

`{adapter}`{keywords}: {trained:,} trained parameters{head}, on a model of {whole:,}{bits}.

{where}
{reference}"""
_IN_BASE = """- The model lies in `{base}/`, as this training quantized it: `{quantization}`. The \
adapter fits no
  other quantization of it.
- `adapter_config.json` names that folder by the path where it was made. The lines above load it \
from beside the
  adapter and work wherever the folder is; `AutoPeftModel` goes by the path, so correct it there \
after a move."""
_IN_SOURCE = """- Its model is {source}. `{base}/config.json` says with which attention{classes} \
it was trained; what
  loads an adapter by `adapter_config.json` alone, such as `AutoPeftModel`, does not know of it."""


def write_adapter_card(folder: Path, name: str, facts: dict[str, Any], args: Any) -> None:
    """Make the card of a training that of an adapter: how to load it, and what it is.

    Args:
        folder: with the `README.md` of the training, whose measurements stay.
        name: what the folder will be called.
        facts: how it was trained.
        args: of the training.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    # after the lines that say how to load a whole model
    measured = text[text.index("\n# ") + 1 :]
    classifies = args.task == "text-classification"
    kind = "AutoModelForSequenceClassification" if classifies else "AutoModelForCausalLM"
    beside = facts["quantization"] is not None
    source = Path(args.model).name if Path(args.model).exists() else args.model
    row = {row.name: row for row in methods("adapter")}.get(facts["adapter"])
    values = {"folder": name, "base": BASE, "kind": kind, "source": source}
    head = _HEAD.format(
        **values,
        pipeline="text-classification" if classifies else "text-generation",
        adapter=facts["adapter"],
        base_model=f"base_model: {args.model}\n" if source == args.model else "",
        why=_why(facts, row is not None),
        imports=", ".join([*([] if beside else ["AutoConfig"]), kind, "AutoTokenizer"]),
        load=(_BESIDE if beside else _ELSEWHERE).format(**values),
    )
    keywords = facts["adapter_kwargs"]
    bits = facts["base_bits"]
    section = _SECTION.format(
        adapter=facts["adapter"],
        keywords=f" with `{json.dumps(keywords)}`" if keywords else "",
        trained=facts["trained"],
        head=", the head among them" if classifies else "",
        whole=facts["base_parameters"],
        bits="" if bits is None else f", quantized to {bits:.4f} bits a weight by BAQ",
        where=(_IN_BASE if beside else _IN_SOURCE).format(
            **values,
            quantization=json.dumps(facts["quantization"]),
            classes=" and for which classes" if classifies else "",
        ),
        reference=""
        if row is None
        else f'\nReference of the adapter: {row.paper.authors}, "{row.paper.title}", '
        f"{row.paper.year}, arXiv {row.paper.arxiv}.\n",
    )
    path.write_text(head + measured + section, encoding="utf-8")


def _why(facts: dict[str, Any], ours: bool) -> str:
    """What the import is for."""
    needed = [facts["adapter"]] if ours else []
    if facts["attention"] in [row.name for row in methods("attention")]:
        needed.append(facts["attention"])
    if facts["base_bits"] is not None:
        needed.append("baq")
    if not needed:
        return f"its trainer; {facts['adapter']} itself loads without it"
    # a quantized checkpoint of an unknown kind is no error
    random = ", and the weights random" if "baq" in needed else ""
    return f"without this line {', '.join(needed)} would be unknown{random}"
