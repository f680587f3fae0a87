"""Several processes of a test, which begin together and end in order."""

import os
import subprocess
import sys

import torch.distributed as dist


def run_two(module: str, *words: str) -> str:
    """Run a module in two processes, over gloo, to its end, and return what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", "-m", module, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def leave() -> None:
    """End this process, as soon as all have come here.

    A thread of gloo lets go of the tensors of the last collective after the caller has gone on,
    and needs Python's lock for it. Where the interpreter ends meanwhile, the thread is ended
    within a destructor, and the process aborts though all is done ("terminate called without an
    active exception"). A barrier does not wait for that thread, and `destroy_process_group` only
    where nothing else holds the group, as a wrapped model or its Trainer does.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
