"""Train a text classifier with the answers of a larger one.

    python trainers/train_distilled.py trainers/configs/distilled.yaml --data train.csv
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/train_distilled.py
    CONFIG.yaml

Every field of `DistilledArguments`, and so of `TrainingArguments`, is a key of the file and a
flag.
"""

import hf_softext  # noqa: F401  registers the attention names
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.classifier.distilled import DistilledArguments, train_distilled


def main() -> None:
    """Parse, train, say how it scored and where the checkpoint is."""
    args = parse_arguments(DistilledArguments)
    result = train_distilled(args)
    if args.process_index == 0:
        print(result.summary())


if __name__ == "__main__":
    main()
