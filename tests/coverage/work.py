"""Functions that the processes of a pool import: well behaved, and not."""

import os
import signal
import time

from hf_softext.coverage.row import Row

NAMES = ["alpha.AlphaModel", "alpha.AlphaForCausalLM", "beta.BetaModel", "beta.BetaForMaskedLM"]


def behave(item):
    if item == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exit":
        os._exit(3)
    if item == "spin":
        while True:
            pass
    if item == "sleep":
        time.sleep(3600)
    if item == "memory":
        return len(bytearray(64 << 30))
    if item == "error":
        raise LookupError("first line\nsecond line")
    return item, os.getpid()


def discover(_):
    return NAMES, {"gamma": "ImportError: no gammalib"}


def probe(name, attention):
    if name == "beta.BetaForMaskedLM":
        os._exit(1)
    return Row(name, "works", reached=2, change=0.5)
