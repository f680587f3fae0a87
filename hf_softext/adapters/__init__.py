"""Adapters for peft. Importing this makes them known to it."""

# first: when it has loaded, `import hf_softext` has it call for the modules below
import peft  # noqa: F401

from hf_softext.adapters.register import register_snnk

register_snnk()
