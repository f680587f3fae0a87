"""Plug the catalogue into transformers and peft."""

from typing import Any

import torch

from hf_softext.attention._base import RECORDERS
from hf_softext.catalog import methods


def register() -> list[str]:
    """Register every attention method of the catalogue, with its mask function, and BAQ.

    `import hf_softext` arranges this already: at once where transformers is loaded, else when it
    is. Calling it again changes nothing.

    Returns:
        The names of the attention methods.

    Raises:
        ValueError: another package has registered one of the names.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    names = []
    for row in methods("attention"):
        forward = row.load().forward
        present = AttentionInterface._global_mapping.get(row.name)
        if present not in (None, forward):
            raise ValueError(
                f"attn_implementation={row.name!r} is taken by "
                f"{getattr(present, '__module__', present)!r}; "
                f"import hf_softext without that package, or have it use another name."
            )
        AttentionInterface.register(row.name, forward)
        AttentionMaskInterface.register(row.name, explicit_mask)
        names.append(row.name)
    # its classes derive from those of transformers, which must not be loaded on account of this one
    from hf_softext.quantization.baq.register import register_baq

    register_baq()
    if attentions_are_recorded not in RECORDERS:
        RECORDERS.append(attentions_are_recorded)
    return names


def register_adapters() -> None:
    """Register SNNK with peft.

    `import hf_softext` arranges this already: at once where peft is loaded, else when it is, so
    that nobody loads peft who does not use it. Calling it again changes nothing.

    Raises:
        ValueError: another package has registered the name.
    """
    from hf_softext.adapters.register import register_snnk

    register_snnk()


def register_pipelines() -> None:
    """Register the pipeline task "sdm-text-classification".

    `import hf_softext` arranges this already: at once where the pipelines of transformers are
    loaded, else when they are. Calling it again changes nothing.

    Raises:
        ValueError: another package has registered the name.
    """
    from hf_softext.heads.sdm.pipeline import register_pipeline

    register_pipeline()


def explicit_mask(
    *args: Any,
    allow_is_causal_skip: Any = None,
    allow_is_bidirectional_skip: Any = None,
    **kwargs: Any,
):
    """The boolean mask (B, 1, Q, K) of transformers, never skipped.

    A skipped mask leaves it to the attention function to guess whether the model is causal, and
    several encoders say nothing about that; the number of visible keys is needed anyhow. Where
    every query sees the same keys, one row stands for all and no matrix is written.
    """
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    padding, queries, keys = map(kwargs.get, ("attention_mask", "q_length", "kv_length"))
    if (
        kwargs.get("mask_function") is bidirectional_mask_function
        and isinstance(queries, int)
        and isinstance(keys, int)
        and not kwargs.get("q_offset")
        and not kwargs.get("kv_offset")
        and (padding is None or padding.shape[-1] == keys)
    ):
        if padding is None:
            device = kwargs.get("device", "cpu")
            padding = torch.ones(kwargs["batch_size"], keys, dtype=torch.bool, device=device)
        return padding.bool()[:, None, None, :].expand(-1, 1, queries, -1)
    return sdpa_mask(*args, allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **kwargs)


def attentions_are_recorded() -> bool:
    """Whether transformers records attention weights in the forward pass that runs now.

    Most models pass `output_attentions` down to the attention function; some do not, and then the
    recorder is the only one who knows.
    """
    from transformers.utils import output_capturing

    active = output_capturing._active_collector
    # a context variable cannot be traced; while compiling, its plain stand-in is what holds
    if active.compiling or torch.compiler.is_compiling():
        recorded = active.global_var
    else:
        recorded = active.context_var.get()
    return recorded is not None and any("attentions" in key for key in recorded)
