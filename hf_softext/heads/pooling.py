"""From hidden states to one vector a row."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.heads.backbone import backbone, input_device

POOLINGS = ("cls", "last", "mean", "cls_mean", "last_mean")


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector for each row of hidden states.

    Args:
        states: (B, L, D), floating point.
        mask: (B, L), 1 for a token and 0 for padding, each row with a token at its beginning.
        pooling: "cls", the first token; "last", the last one; "mean", over all tokens; "cls_mean"
            and "last_mean", one behind the other.

    Returns:
        (B, D), or (B, 2 D) for two, float32.
    """
    kept = mask.bool()
    found = []
    for part in pooling.split("_"):
        if part == "cls":
            found.append(states[:, 0].float())
        elif part == "last":
            places = torch.arange(kept.shape[1], device=kept.device)
            last = (places * kept).amax(1)
            found.append(states[torch.arange(len(states), device=states.device), last].float())
        else:
            # what stands in padding may be anything, NaN too
            rows = states.float().masked_fill(~kept[..., None], 0.0)
            found.append(rows.sum(1) / kept.sum(1, keepdim=True))
    return torch.cat(found, -1)


def check_pooling(pooling: str) -> None:
    """Raise ValueError for a name that is none."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} must be one of {', '.join(POOLINGS)}.")


def pooled_features(
    model: Any, inputs: Mapping[str, Any], pooling: str, layers: Sequence[int] = (-1,)
) -> Tensor:
    """Features of one batch.

    Args:
        model: as `backbone` takes it; it runs in the mode in which it is, and gradients flow.
        inputs: what a tokenizer or processor gives. "attention_mask", (B, L), marks padding on
            either side; without it every place counts. What the backbone does not take, such as
            labels, is left out.
        pooling: see `pool`.
        layers: of `hidden_states`: 0 are the embeddings, -1 is the last layer's output, after the
            final norm where the model has one.

    Returns:
        (B, D), float32: for each layer, in the order given, its pooled states.

    Raises:
        ValueError: an unknown pooling, a layer that does not exist, a row without a token, or
            states that are not (B, L, D).

    Notes:
        Rows that are padded on the left are moved to the left edge first, so that a model with
        learned positions counts them from the first token and not from the padding.
    """
    check_pooling(pooling)
    if not layers:
        raise ValueError("layers is empty: name at least one, such as (-1,).")
    body = backbone(model)
    known = inspect.signature(body.forward).parameters
    device = input_device(body)
    given = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if name in known and name != "labels"
    }
    mask = given.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2 or not bool(mask.bool().any(1).all()):
            raise ValueError(
                f"attention_mask of shape {tuple(mask.shape)} must be (B, L) and have a token in "
                "every row: leave empty texts out."
            )
        given = _from_left_edge(given, mask)
    states = _states(body, given, layers, known)
    mask = given.get("attention_mask")
    if mask is None:
        mask = torch.ones(states[0].shape[:2], dtype=torch.int64, device=states[0].device)
    for state in states:
        if state.dim() != 3 or state.shape[:2] != mask.shape:
            raise ValueError(
                f"{type(body).__name__} gives hidden states of shape {tuple(state.shape)} for "
                f"{tuple(mask.shape)} tokens: only (B, L, D) can be pooled."
            )
    # a model may be spread over several devices
    home = states[-1].device
    return torch.cat([pool(one, mask.to(one.device), pooling).to(home) for one in states], -1)


def _from_left_edge(given: dict[str, Any], mask: Tensor) -> dict[str, Any]:
    first = mask.bool().int().argmax(1, keepdim=True)
    if not bool(first.any()):
        return given
    length = mask.shape[1]
    order = (torch.arange(length, device=mask.device) + first) % length
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return {
        name: value[rows, order]
        if isinstance(value, Tensor) and value.shape[:2] == mask.shape
        else value
        for name, value in given.items()
    }


def _states(
    body: nn.Module, given: dict[str, Any], layers: Sequence[int], known: Mapping[str, Any]
) -> list[Tensor]:
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    every = any(layer != -1 for layer in layers)
    output = body(**given, **options, output_hidden_states=every, return_dict=True)
    last = output.last_hidden_state
    if not every:
        return [last] * len(layers)
    count = len(output.hidden_states)
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ValueError(
            f"layers={tuple(layers)!r}: {wrong[0]} does not exist, {type(body).__name__} has "
            f"{-count} to {count - 1}, of which 0 are the embeddings."
        )
    # some models leave the final norm out of the last of their hidden states
    states = [*output.hidden_states[:-1], last]
    return [states[layer] for layer in layers]
