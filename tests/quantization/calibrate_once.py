"""Quantizes a tiny model in a process of its own, which may be killed on the way.

python calibrate_once.py MODEL OUT WORK [KILL_AT]: writes the quantized tensors to OUT, a
safetensors file; with KILL_AT it kills itself amid a block when so many are in the work folder.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from hf_softext.quantization.baq import calibrate
from hf_softext.quantization.baq.calibrate import quantize_model
from hf_softext.quantization.baq.config import BaqConfig
from tests.quantization.calibration_models import build, token_ids


def main(name: str, out: str, work: str, kill_at: int | None = None) -> None:
    """Quantize, and write what came of it where this is the main process."""
    torch.set_num_threads(1)
    if kill_at is not None:
        solve, measure = calibrate.solve, calibrate.measure

        def deadly(work_of):
            def call(*args):
                result = work_of(*args)
                # in the middle of a block: some of its modules are done
                if len(list(Path(work).glob("*-*.safetensors"))) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        calibrate.solve, calibrate.measure = deadly(solve), deadly(measure)
    model = build(name)
    reports = quantize_model(model, BaqConfig(bits=9.0, refine=1), work or None, token_ids())
    if PartialState().is_main_process:
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        tensors["losses"] = torch.tensor([one.loss for one in reports], dtype=torch.float64)
        tensors["tokens"] = torch.tensor([one.tokens for one in reports])
        # tied weights lie in one memory, which the format refuses
        save_file({key: value.clone() for key, value in tensors.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
