"""How well all-MiniLM-L6-v2 takes to a new attention: after the bare swap, and after adoption.

    python benchmarks/adoption.py --steps 3000 softplus "softplus_reweighted:power=3" stablemax

Appends a line for each measurement to `benchmarks/results/adoption.csv`. The peer is the original
model, measured in the same way in the same run; a sceptic's baseline is the bare swap.
"""

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import transformers
from _record import RESULTS, append, environment

from hf_softext import AdoptionArguments, adopt, apply_attention
from hf_softext.demo.sentence import Ruler, Scale, minilm, write_adoption_texts


def record(**row: object) -> None:
    """Append one line to the results, with what is needed to place it."""
    row |= environment()
    print(json.dumps(row), flush=True)
    append(RESULTS / "adoption.csv", [row])


def main() -> None:
    """Measure the original once, then each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("methods", nargs="+", metavar="NAME[:PARAMETER=VALUE,...]")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--train-rows", type=int, default=15000, help="rows of the probe")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)

    ruler = Ruler(minilm(), Scale(train_rows=given.train_rows, test_rows=4500, long_rows=1000))
    common = {"steps": 0, "batch": given.batch_size, "seconds": 0.0}
    original = transformers.AutoModel.from_pretrained(minilm())
    record(
        attention="original", parameters="", stage="", **common, **asdict(ruler.measure(original))
    )
    for method in given.methods:
        name, _, listed = method.partition(":")
        parameters = {
            k: json.loads(v) for k, _, v in (p.partition("=") for p in listed.split(",") if p)
        }
        swapped = apply_attention(
            transformers.AutoModel.from_pretrained(minilm()), name, **parameters
        )
        label = {"attention": name, "parameters": json.dumps(parameters)}
        record(**label, stage="swapped", **common, **asdict(ruler.measure(swapped)))
        with tempfile.TemporaryDirectory() as folder:
            texts = Path(folder) / "texts.txt"
            write_adoption_texts(texts)
            start = time.time()
            result = adopt(
                AdoptionArguments(
                    output_dir=f"{folder}/out",
                    model=minilm(),
                    attention=name,
                    parameters=json.dumps(parameters),
                    data=str(texts),
                    max_steps=given.steps,
                    per_device_train_batch_size=given.batch_size,
                    learning_rate=given.learning_rate,
                    save_strategy="no",
                    logging_steps=100,
                )
            )
            spent = {**common, "steps": given.steps, "seconds": round(time.time() - start, 1)}
            adopted = transformers.AutoModel.from_pretrained(result.folder)
            label["parameters"] = json.dumps(adopted.config.softext)
            record(**label, stage="adopted", **spent, **asdict(ruler.measure(adopted)))


if __name__ == "__main__":
    main()
