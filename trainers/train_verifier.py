"""Fit an SDM head behind a model: which of its predictions or answers may be relied on.

    python trainers/train_verifier.py trainers/configs/verifier.yaml --data train.csv
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/train_verifier.py
    CONFIG.yaml

Every field of `VerifierArguments` is a key of the file and a flag. Several processes share the
model's passes over the rows; the head, which is small, is fitted by the first.
"""

import hf_softext  # noqa: F401  registers the attention names and the quantizer
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.verifier.arguments import VerifierArguments


def main() -> None:
    """Parse, fit, say what is admitted and where the head is."""
    args = parse_arguments(VerifierArguments)
    # after the arguments are right, as this takes seconds
    from hf_softext.training.verifier.run import fit_verifier

    result = fit_verifier(args)
    if result is not None:
        print(result.summary())


if __name__ == "__main__":
    main()
