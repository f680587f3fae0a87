"""Train an adapter of peft, by name, on a text classifier or a language model.

    python trainers/train_adapter.py trainers/configs/adapter.yaml --data train.csv
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/train_adapter.py
    CONFIG.yaml

Every field of `AdapterClassifierArguments`, or with `task: causal-lm` of
`AdapterCausalLMArguments`, and so of `TrainingArguments`, is a key of the file and a flag.
"""

import hf_softext  # noqa: F401  registers snnk, the attention names and the quantizer
from hf_softext.training.adapter.arguments import parse_adapter_arguments
from hf_softext.training.adapter.run import train_adapter


def main() -> None:
    """Parse, train, say what was measured and where the adapter is."""
    args = parse_adapter_arguments()
    result = train_adapter(args)
    if args.process_index == 0:
        print(result.summary())


if __name__ == "__main__":
    main()
