"""From a BAQ checkpoint to a plain one, which loads without this package."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from hf_softext.attention.record import BLOCK
from hf_softext.quantization.baq.size import file_bytes, size_report
from hf_softext.training.checkpoints import claim, publish
from hf_softext.training.pretrained import pretrained_class
from hf_softext.version import __version__

_DTYPES = ("auto", "float32", "bfloat16", "float16")

_CARD = """---
library_name: transformers
---

# {name}

{source}, whose linear layers are quantized to {bits:.4f} bits a weight by BAQ (arXiv 2506.05664),
with those values written out in {dtype} by hf_softext {version}. {needs}
"""


@dataclass(frozen=True)
class Export:
    """What to write where; and what was written, in bytes, once it is."""

    checkpoint: str
    out: str
    dtype: str = "auto"

    def run(self) -> int:
        """Write the plain checkpoint: weights, tokenizer, card.

        It appears at `out` at the end, complete, by a rename; until then it is `<out>.partial`.

        Returns:
            Bytes of its weights files.

        Raises:
            ValueError: not a BAQ checkpoint, an unknown dtype, or a partial folder of another run.
            FileExistsError: `out` is there already.
        """
        final = Path(self.out)
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: use one of {', '.join(_DTYPES)}.")
        if final.exists():
            raise FileExistsError(f"out={self.out!r} exists: remove it or choose another.")
        config = AutoConfig.from_pretrained(self.checkpoint)
        found = getattr(config, "quantization_config", None) or {}
        if found.get("quant_method") != "baq":
            how = found.get("quant_method", "not quantized")
            raise ValueError(
                f"{self.checkpoint!r} is no BAQ checkpoint ({how}): name a folder that `softext "
                "quantize` or save_pretrained of a model quantized by BAQ has written."
            )
        kind = pretrained_class(self.checkpoint, config)
        model = kind.from_pretrained(self.checkpoint, dtype=self.dtype)
        bits, block = size_report(model).bits, getattr(model.config, BLOCK, None)
        plain = model.dequantize()

        work = final.with_name(f"{final.name}.partial")
        claim(work, self, ["checkpoint", "dtype"])
        staged = work / "final"
        shutil.rmtree(staged, ignore_errors=True)
        plain.save_pretrained(staged)
        try:
            AutoTokenizer.from_pretrained(self.checkpoint).save_pretrained(staged)
        except (OSError, ValueError, KeyError):
            # an image model has none
            if (Path(self.checkpoint) / "tokenizer_config.json").exists():
                raise
        card = _CARD.format(
            name=final.name,
            source=Path(self.checkpoint).name,
            bits=bits,
            dtype=str(plain.dtype).removeprefix("torch."),
            version=__version__,
            needs=f"Its attention, {block['attention']}, is of hf_softext: import that first."
            if block
            else "Nothing of that package is needed to load it.",
        )
        (staged / "README.md").write_text(card, encoding="utf-8")
        written = sum(file_bytes(staged))
        publish(staged, final, work)
        return written
