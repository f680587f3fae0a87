"""Train a causal language model from scratch or further, and test it beyond its training length.

    python trainers/train_causal_lm.py trainers/configs/length_extrapolation.yaml --data text.txt
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/train_causal_lm.py
    CONFIG.yaml

Every field of `CausalLMArguments`, and so of `TrainingArguments`, is a key of the file and a flag.
"""

import hf_softext  # noqa: F401  registers the attention names
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.run import train_causal_lm


def main() -> None:
    """Parse, train, say what was measured and where the checkpoint is."""
    args = parse_arguments(CausalLMArguments)
    result = train_causal_lm(args)
    if args.process_index == 0:
        print(result.summary())


if __name__ == "__main__":
    main()
