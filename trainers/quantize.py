"""Quantize a model to any average of bits, on one process or many.

    python trainers/quantize.py trainers/configs/quantize.yaml --data text.txt
    accelerate launch --config_file trainers/accelerate/cpu_2.yaml trainers/quantize.py CONFIG.yaml

Every field of `QuantizeArguments` is a key of the file and a flag.
"""

from accelerate import PartialState

import hf_softext  # noqa: F401  registers the attention names and the quantizer
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.quantize.arguments import QuantizeArguments
from hf_softext.training.quantize.run import quantize


def main() -> None:
    """Parse, quantize, say what was reached and where the checkpoint is."""
    args = parse_arguments(QuantizeArguments)
    main_process = PartialState(cpu=args.use_cpu).is_main_process
    tell = print if main_process else (lambda line: None)
    result = quantize(args, tell)
    if main_process:
        print(result.summary())


if __name__ == "__main__":
    main()
