"""The part of a model that makes features, and what tells it from another."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

# elements of each tensor that the digest looks at
_SAMPLED = 256
# whole numbers with the bits of a tensor's elements, by their size in bytes
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ADAPTER_STATE = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")
# tokens of the two sequences that tell a decoder from an encoder
_PROBED = 12


def backbone(model: Any) -> nn.Module:
    """The module whose hidden states are the features: a model without its head.

    Args:
        model: of transformers, with or without a head, quantized or not, also inside of peft or
            DistributedDataParallel; of an encoder-decoder, the encoder is taken.

    Raises:
        TypeError: it is no model of transformers.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model={type(model).__name__} is no model of transformers.")
    if getattr(model.config, "is_encoder_decoder", False):
        model = cast(Any, model).get_encoder()
    else:
        model = getattr(model, "base_model", model)
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have every module in evaluation mode, and each as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def input_device(model: Any) -> torch.device:
    """Where a model takes its input."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    return next((embedding or model).parameters()).device


def default_pooling(model: Any) -> str:
    """ "last_mean" for a model whose tokens see only what is before them, "cls_mean" for others.

    Attention layers of transformers say which they are. Where there are none that do, two sequences
    are run that begin with one token and go on differently: the state of that first token is the
    same, or it is not.

    Args:
        model: as `backbone` takes it. One that takes no token ids is "cls_mean".
    """
    body: Any = backbone(model)
    takes_ids = getattr(body, "main_input_name", "input_ids") == "input_ids"
    if getattr(body.config, "is_encoder_decoder", False) or not takes_ids:
        return "cls_mean"
    causal = {module.is_causal for module in body.modules() if hasattr(module, "is_causal")}
    if len(causal) == 1:
        return "last_mean" if causal.pop() else "cls_mean"
    size = body.get_input_embeddings().weight.shape[0]
    special = {getattr(body.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    ids = [index for index in range(size) if index not in special][: 2 * _PROBED] or [0]
    first, second = ids[:_PROBED], [ids[0], *ids[_PROBED:][: _PROBED - 1]]
    second += ids[-1:] * (len(first) - len(second))
    states = []
    with torch.no_grad(), evaluating(body):
        for row in (first, second):
            tokens = torch.tensor([row], device=input_device(body))
            mask = torch.ones_like(tokens)
            states.append(body(input_ids=tokens, attention_mask=mask).last_hidden_state[0, 0])
    gap = (states[0] - states[1]).float().norm() / states[0].float().norm()
    # two runs of one shape round alike, in half precision too
    return "last_mean" if gap <= 1e-6 else "cls_mean"


def backbone_fingerprint(model: Any) -> dict[str, Any]:
    """What tells a backbone from another; thresholds of one mean nothing for another.

    Args:
        model: as `backbone` takes it.

    Returns:
        "name_or_path" and "revision" (None where unknown), for people; "model_type", "hidden_size",
        "attention", which is "softmax" for all that compute it, and "digest", a SHA-256 over every
        tensor of the backbone: name, shape, dtype, some elements, and the sum of all bits. The head
        is not part of it; adapters inside are, and which of them are at work, and what
        `config.softext` says. A backbone in another precision has another digest, as its features
        differ too.

    Raises:
        ValueError: a weight is not in memory.
    """
    body = backbone(model)
    config: Any = body.config
    text = config.get_text_config()
    name = getattr(model.config, "name_or_path", "") or getattr(config, "name_or_path", "")
    return {
        "name_or_path": name or None,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "hidden_size": int(getattr(text, "hidden_size", 0) or getattr(text, "d_model", 0)),
        "attention": _attention(config),
        "digest": _digest(body),
    }


def check_backbone(model: Any, expected: Mapping[str, Any]) -> None:
    """Make sure that a model is the one that a head was fitted on.

    Args:
        model: as `backbone` takes it.
        expected: what `backbone_fingerprint` gave then. Name and revision need not agree: a copy
            in another folder is the same model.

    Raises:
        ValueError: it is another one.
    """
    found = backbone_fingerprint(model)
    for name in ("model_type", "hidden_size", "attention", "digest"):
        if found[name] != expected.get(name):
            raise ValueError(
                f"this head was fitted on {expected.get('name_or_path') or 'a model'!s}, and the "
                f"model given has another {name} ({found[name]!r} instead of "
                f"{expected.get(name)!r}): load the same weights in the same precision, or fit the "
                "head again."
            )


def _attention(config: Any) -> str:
    name = str(getattr(config, "_attn_implementation", None) or "eager")
    plain = name in ("eager", "sdpa", "flex_attention") or "flash" in name
    return "softmax" if plain else name


def _digest(body: nn.Module) -> str:
    config: Any = body.config
    digest = hashlib.sha256(json.dumps(getattr(config, "softext", None), sort_keys=True).encode())
    for name, module in body.named_modules():
        # a layer of peft: nothing of this is among its tensors
        if isinstance(getattr(module, "disable_adapters", None), bool):
            state = [getattr(module, one, None) for one in _ADAPTER_STATE]
            digest.update(f"{name} {state}".encode())
    tensors = body.state_dict()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_meta:
            raise ValueError(
                f"{name} is not in memory (offloaded to disk?): load the model with a device_map "
                "that keeps it on devices."
            )
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLED)]
        digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        # whole numbers: the sum is the same in any order, on any device
        bits = flat.view(_BITS[flat.element_size()])
        digest.update(str(int(bits.sum(dtype=torch.int64))).encode())
    return digest.hexdigest()
