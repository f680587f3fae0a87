"""Prints what quantizing takes beside the model, in MiB: at most, and by the bound.

The bound: the hidden states of one block and the Gram matrices of one block. Everything that grows
with the number of blocks, or with the square of a sequence's length, would show.
"""

import json
from pathlib import Path

import torch
import transformers as hf

from hf_softext.quantization.baq import calibrate
from hf_softext.quantization.baq.config import BaqConfig

LAYERS, WIDTH, INNER, COUNT, LENGTH = 16, 128, 256, 64, 160


def resident(peak: bool = False) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    """Quantize a model of many blocks; the nearest values do, as it is not about the solver."""
    torch.set_num_threads(1)
    solve = calibrate.solve
    calibrate.solve = lambda weight, gram, levels, settings: solve(weight, None, levels, settings)
    config = hf.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=50,
        max_position_embeddings=LENGTH,
    )
    model = hf.LlamaForCausalLM(config).eval()
    ids = list(torch.randint(3, 50, (COUNT, 1, LENGTH)))
    baq = {"bits": 4, "allocation": "uniform", "clip": False, "refine": 0}
    # what libraries take once
    small = hf.LlamaForCausalLM(hf.LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1}))
    calibrate.quantize_model(small, BaqConfig(**baq), sequences=ids[:2])
    # the peak so far is that of importing
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident()
    calibrate.quantize_model(model, BaqConfig(**baq), sequences=ids)
    hidden = COUNT * LENGTH * WIDTH * 4
    grams = (3 * WIDTH**2 + INNER**2) * 8
    figures = {
        "extra": resident(peak=True) - before,
        "bound": (hidden + grams) / 2**20,
        "all blocks": LAYERS * (hidden + grams) / 2**20,
    }
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
