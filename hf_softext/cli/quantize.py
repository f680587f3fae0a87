"""`softext quantize` and `softext export`."""

from pathlib import Path

from hf_softext.training.arguments import parse_arguments
from hf_softext.training.quantize.arguments import QuantizeArguments


def quantize(words: list[str]) -> None:
    """Quantize a model and print what was reached.

    Args:
        words: `MODEL [--name value ...]` or `CONFIG.yaml [--name value ...]`.
    """
    if words and not words[0].startswith("-") and Path(words[0]).suffix not in (".yaml", ".yml"):
        words = ["--model", *words]
    usage = "softext quantize MODEL|CONFIG.yaml --data FILE --out DIR [--name value ...]"
    args = parse_arguments(QuantizeArguments, words, usage)
    # after the arguments are right, as this takes seconds
    from hf_softext.training.quantize.run import quantize as run

    print(run(args, tell=print).summary())


def export(checkpoint: str, out: Path, dtype: str) -> None:
    """Write a plain checkpoint and print where it is."""
    from hf_softext.training.quantize.export import Export

    written = Export(checkpoint, str(out), dtype).run()
    print(f"{written / 1e6:,.2f} MB of weights; saved in {out}")
