"""Trained short, tested long: loss and passkey retrieval of attentions up to 16 times the length.

    python benchmarks/length_extrapolation.py               # what is missing in the CSV
    python benchmarks/length_extrapolation.py --report      # the table, from the CSV
    python benchmarks/length_extrapolation.py --plot        # the picture, from the CSV

Every row trains the model of `trainers/configs/length_extrapolation.yaml` with the trainer of
`trainers/train_causal_lm.py` on the bundled tiny Shakespeare, its last 10 % held out. Rows of one
seed start from the same weights and see the same windows in the same order. The peer is softmax, as
"sdpa"; the fair baseline is softmax on the length-scaled cosine scores that the softplus methods
use, which tells what comes from the scores and what from the map. `reference_attentions.py` defines
the rows that are no methods of this package.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean

from _record import RESULTS, append, environment, read
from datasets import disable_progress_bars
from length_extrapolation_report import print_report, save_plot
from reference_attentions import REFERENCES

from hf_softext.demo.corpora import shakespeare
from hf_softext.demo.language_model import COSINE_SOFTMAX, register_reference
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.run import CausalLMResult, train_causal_lm

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "trainers" / "configs" / "length_extrapolation.yaml"
CSV = RESULTS / "length_extrapolation.csv"

# label -> name and parameters of the attention, in the order in which they run and are printed
ROWS = {
    "softmax": ("sdpa", {}),
    "softmax + QK-norm + log N": (COSINE_SOFTMAX.name, {}),
    "softplus": ("softplus", {}),
    "softplus_reweighted, p = 3": ("softplus_reweighted", {"power": 3}),
    "softplus_reweighted, p = 15": ("softplus_reweighted", {"power": 15}),
    "sigmoid / sum": ("sigmoid_l1", {}),
    "ReLU / sum": ("relu_l1", {}),
    "stablemax": ("stablemax", {}),
    "sigmoid": ("sigmoid_plain", {}),
    "ReLU": ("relu_plain", {}),
}


def settings_of(args: CausalLMArguments) -> str:
    """What two rows must share to be compared, as one line of JSON."""
    names = ["model_type", "config_overrides", "tokenizer", "length", "held_out", "passkey_share"]
    names += ["max_steps", "per_device_train_batch_size", "learning_rate", "adam_beta2"]
    names += ["warmup_steps", "weight_decay", "test_factors", "test_tokens", "passkey_samples"]
    return json.dumps({name: getattr(args, name) for name in names})


def train(label: str, seed: int, words: list[str], folder: Path) -> CausalLMResult:
    """One run: a row with a seed."""
    name, parameters = ROWS[label]
    out = folder / f"{list(ROWS).index(label)}-{seed}"
    words = [*words, "--attention", name, "--attention_parameters", json.dumps(parameters)]
    words += ["--seed", str(seed), "--output_dir", str(out)]
    return train_causal_lm(parse_arguments(CausalLMArguments, words))


def record(label: str, seed: int, settings: str, result: CausalLMResult, seconds: float) -> None:
    """Append a line for each length, with what is needed to place it."""
    name, parameters = ROWS[label]
    shortest = min(result.losses)
    lines = []
    for length, loss in result.losses.items():
        found = [score for score in result.passkeys if score.length == length]
        lines.append(
            {
                "attention": label,
                "implementation": name,
                "parameters": json.dumps(parameters),
                "seed": seed,
                "length": length,
                "factor": length // shortest,
                "loss": round(loss, 5),
                "passkey": round(mean(score.accuracy for score in found), 4) if found else "",
                "passkey_windows": sum(score.windows for score in found),
                "seconds": round(seconds, 1),
                "settings": settings,
                **environment(),
            }
        )
    append(CSV, lines)


def main() -> None:
    """Run what is missing, or print or draw what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plot", action="store_true")
    given, trainer_words = parser.parse_known_args()
    words = [str(CONFIG), "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no"]
    words += ["--output_dir", "none", *trainer_words]
    settings = settings_of(parse_arguments(CausalLMArguments, words))
    if given.report or given.plot:
        lines = [line for line in read(CSV) if line["settings"] == settings]
        if given.report:
            print_report(lines, list(ROWS))
        if given.plot:
            save_plot(lines, list(ROWS), CSV.with_suffix(".svg"))
        return
    warnings.filterwarnings("ignore", category=UserWarning)
    disable_progress_bars()
    for method in (COSINE_SOFTMAX, *REFERENCES):
        register_reference(method)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "shakespeare.txt"
        text.write_text("".join(shakespeare()), encoding="utf-8")
        words += ["--data", str(text)]
        for seed in given.seeds:
            for label in given.rows:
                key = (label, str(seed), settings)
                if key in {(x["attention"], x["seed"], x["settings"]) for x in read(CSV)}:
                    continue
                start = time.time()
                result = train(label, seed, words, folder)
                record(label, seed, settings, result, time.time() - start)
                print(f"{label}, seed {seed}\n{result.summary()}", flush=True)


if __name__ == "__main__":
    main()
