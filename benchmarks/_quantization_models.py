"""The language models that the quantization benchmarks quantize, and their text.

    python benchmarks/_quantization_models.py llama     # or opt; trains it where it is missing

Byte-level models of 5 million parameters, trained with the trainer of
`trainers/train_causal_lm.py` on the source code of Python's standard library, which every machine
has; files in an order drawn once, the last tenth of them held out.
"""

import argparse
import json
import random
import sysconfig
from pathlib import Path

import torch

from hf_softext.data.texts import read_corpus
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.data import split_stream, token_stream
from hf_softext.training.causal_lm.model import load_tokenizer
from hf_softext.training.causal_lm.run import train_causal_lm

WORK = Path(__file__).parents[1] / "build" / "quantization"
HELD_OUT, LENGTH = 0.1, 256

# what one of the two is; both have 5.2 to 5.6 million parameters
SIZES = {
    "llama": {"intermediate_size": 768, "num_key_value_heads": 8},
    "opt": {"ffn_dim": 1280, "word_embed_proj_dim": 256, "dropout": 0.0},
}
SHARED = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}
# tables of characters and of documentation, not code
LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data"}


def corpus() -> Path:
    """The text as a table, a file of the library a row; made where it is missing."""
    path = WORK / "corpus.jsonl"
    if not path.exists():
        root = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(f for f in root.rglob("*.py") if not LEFT_OUT & {*f.parts[:-1]})
        random.Random(0).shuffle(files)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        WORK.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".tmp")
        staged.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        staged.rename(path)
    return path


def streams() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids to train and calibrate on, and those held out."""
    tokens = token_stream(read_corpus(str(corpus()), "text"), load_tokenizer("bytes", None))
    return split_stream(tokens, HELD_OUT, LENGTH)


def trained(kind: str) -> Path:
    """The folder of the model "llama" or "opt", trained where it is missing."""
    folder = WORK / kind
    if not folder.exists():
        settings = {
            "model_type": kind,
            "config_overrides": json.dumps(SHARED | SIZES[kind]),
            "tokenizer": "bytes",
            "data": str(corpus()),
            "output_dir": str(folder),
            "length": LENGTH,
            "held_out": HELD_OUT,
            "max_steps": 1000,
            "save_steps": 100,
            "per_device_train_batch_size": 16,
            "learning_rate": 2e-3,
            "adam_beta2": 0.95,
            "test_factors": "1",
            "test_tokens": 131072,
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        print(train_causal_lm(parse_arguments(CausalLMArguments, words)).summary())
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=[*SIZES])
    print(trained(parser.parse_args().kind))
