"""Teach a pretrained text model a new attention, on one process or many.

    python trainers/adopt_attention.py trainers/configs/adopt_minilm.yaml --data queries.txt
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/adopt_attention.py
    CONFIG.yaml

Every field of `AdoptionArguments`, and so of `TrainingArguments`, is a key of the file and a flag.
"""

import hf_softext  # noqa: F401  registers the attention names
from hf_softext.training.adoption.run import adopt
from hf_softext.training.adoption.trainer import AdoptionArguments
from hf_softext.training.arguments import parse_arguments


def main() -> None:
    """Parse, adopt, say where the checkpoint is."""
    args = parse_arguments(AdoptionArguments)
    result = adopt(args)
    if args.process_index == 0:
        print(
            f"cosine to the original {result.before:.4f} -> {result.after:.4f}; saved in "
            f"{result.folder}"
        )


if __name__ == "__main__":
    main()
