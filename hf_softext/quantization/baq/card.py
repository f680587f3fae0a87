"""The README that is saved with a quantized model.

A checkpoint that is loaded without this package gets random weights and only warnings, so that the
first thing beside it has to be the line that imports it. transformers has no hook for files beside
the weights; this adds two methods to the model itself.
"""

import inspect
import re
import zlib
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from hf_softext.catalog import find
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.size import SizeReport, code_rates, size_report
from hf_softext.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CARD = """---
library_name: transformers
tags:
- hf_softext
- baq
{base_model}---

```python
import hf_softext  # without this line transformers loads random weights
from transformers import {model_class}

model = {model_class}.from_pretrained("{folder}")
```

# {name}, {bits:.3g} bits a weight

Linear layers quantized by BAQ, with a width of its own for every column of a weight. The average
that was asked for is {asked:g} bits{nominal}; in the file it is {bits:.4f}, all counted that is
stored for a quantized weight.

| | weights | bytes | bits a weight |
|---|---|---|---|
{table}

| bits of a column | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |
|---|---|---|---|---|---|---|---|---|---|
| columns | {widths} |

- allocation {allocation}, solver {solver}, columns of {low} to {high} bits{rates}
- calibration: {calibration}
- hf_softext {hf_softext}, transformers {transformers}, torch {torch}

Reference: {paper.authors}, "{paper.title}", {paper.year}, arXiv {paper.arxiv}.
"""
# of the authors' allocation
_RATES = "; mean log2 of levels {:.4f}, as the authors count, in {:.4f} bits that are stored"
_MARK = re.compile(r"\n<!-- written by hf_softext, crc32 ([0-9a-f]{8}) -->\n\Z")
# what transformers says in the empty card that it puts where a repository has none
_EMPTY = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model "
    "card has been automatically generated."
)


def write_cards(model: "PreTrainedModel") -> None:
    """From now on, have `save_pretrained` and `push_to_hub` of a model write a README.

    The methods are bound, so that a copy of the model has its own.
    """
    model.save_pretrained = MethodType(save_pretrained, model)
    model._upload_modified_files = MethodType(_upload_modified_files, model)


def write_no_cards(model: "PreTrainedModel") -> None:
    """Give a model back the methods of its class."""
    for name in ("save_pretrained", "_upload_modified_files"):
        vars(model).pop(name, None)


def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
    """What the model's class does, and then the README."""
    save = type(self).save_pretrained
    call = inspect.signature(save).bind(self, *args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    self.hf_quantizer.original_names = given["save_original_format"]
    try:
        save(self, *args, **kwargs)
    finally:
        # they hold for what was just written only
        self.hf_quantizer.quantization_config.checksums = None
    if given["is_main_process"]:
        write_card(self, Path(given["save_directory"]))


def _upload_modified_files(self: Any, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
    write_card(self, Path(working_dir))
    return type(self)._upload_modified_files(self, working_dir, *args, **kwargs)


def write_card(model: "PreTrainedModel", folder: Path) -> None:
    """Write `README.md`, unless there is one that is not ours or that somebody has edited.

    Args:
        model: quantized by BAQ. With adapters of transformers' own, only they are saved, and
            nothing is written.
        folder: where the checkpoint is.
    """
    path = folder / "README.md"
    if not folder.is_dir() or getattr(model, "_hf_peft_config_loaded", False):
        return
    if path.exists() and not _replaceable(path.read_text(encoding="utf-8")):
        return
    text = _text(model, folder.resolve().name)
    path.write_text(f"{text}\n<!-- written by hf_softext, crc32 {_crc(text)} -->\n", "utf-8")


def _replaceable(text: str) -> bool:
    mark = _MARK.search(text)
    if mark:
        return mark[1] == _crc(text[: mark.start()])
    if _EMPTY not in text:
        return False
    empty = ModelCard.from_template(ModelCardData(), model_description=_EMPTY)
    return ModelCard(text).text.strip() == empty.text.strip()


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _text(model: "PreTrainedModel", folder: str) -> str:
    config: BaqConfig = model.hf_quantizer.quantization_config  # type: ignore[union-attr]
    report: SizeReport = size_report(model)
    calibration = config.calibration or {}
    low, high = config.bit_range
    return _CARD.format(
        base_model=_base_model(model),
        model_class=type(model).__name__,
        folder=folder,
        name=folder,
        bits=report.bits,
        asked=config.bits,
        nominal=" of a code" if config.allocation in ("uniform", "paper") else "",
        table="\n".join(f"| {' | '.join(row)} |" for row in report.rows()),
        widths=" | ".join(map(str, report.widths)),
        allocation=config.allocation,
        solver=config.solver,
        low=low,
        high=high,
        rates=_RATES.format(*code_rates(model)) if config.allocation == "paper" else "",
        calibration=", ".join(f"{key} {value}" for key, value in calibration.items()) or "none",
        hf_softext=__version__,
        transformers=transformers.__version__,
        torch=torch.__version__,
        paper=find("baq", "quantization").paper,
    )


def _base_model(model: "PreTrainedModel") -> str:
    """The line for the hub, where it can be known: the name of a repository."""
    name = model.name_or_path or ""
    known = (
        not model.hf_quantizer.pre_quantized  # type: ignore[union-attr]
        and re.fullmatch(r"[\w.-]+/[\w.-]+", name)
        and not Path(name).exists()
    )
    return f"base_model: {name}\nbase_model_relation: quantized\n" if known else ""
