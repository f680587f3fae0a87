"""Train a text classifier with a loss by name.

    python trainers/train_classifier.py trainers/configs/classifier.yaml --data train.csv
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/train_classifier.py
    CONFIG.yaml

Every field of `ClassifierArguments`, and so of `TrainingArguments`, is a key of the file and a
flag.
"""

import hf_softext  # noqa: F401  registers the attention names
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.classifier.arguments import ClassifierArguments
from hf_softext.training.classifier.run import train_classifier


def main() -> None:
    """Parse, train, say how it scored and where the checkpoint is."""
    args = parse_arguments(ClassifierArguments)
    result = train_classifier(args)
    if args.process_index == 0:
        print(result.summary())


if __name__ == "__main__":
    main()
