"""The input moved a little towards its class before a detector looks at it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_softext.functional.tied_gaussian import raise_score
from hf_softext.heads.backbone import backbone, input_device
from hf_softext.heads.pooling import pooled_features


def scores_of_moved_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    pooling: str,
    layers: Sequence[int],
    epsilon: float,
    score: Callable[[Tensor, int], Tensor],
) -> Tensor:
    r"""Scores at $e' = e + \epsilon\,\mathrm{sign}(\partial M / \partial e)$, e the embeddings.

    Args:
        model: as `backbone` takes it, in evaluation mode.
        inputs: of one batch, with "input_ids" or "inputs_embeds".
        pooling: see `pooled_features`.
        layers: see `pooled_features`. Each has a step of its own: two forward passes and one
            backward pass a layer.
        epsilon: in the unit of the embeddings.
        score: of the features (B, D) of one layer, given with its place in `layers`: M, (B,).

    Returns:
        (B, L), without gradients.

    Raises:
        ValueError: there are no token ids to embed.

    Notes:
        The paper moves pixels; for texts, to move the embeddings of the tokens is our choice.
    """
    given = dict(inputs)
    if "inputs_embeds" not in given:
        ids = given.pop("input_ids", None)
        if not isinstance(ids, Tensor):
            raise ValueError("inputs has neither input_ids nor inputs_embeds to move.")
        body: Any = backbone(model)
        with torch.no_grad():
            given["inputs_embeds"] = body.get_input_embeddings()(ids.to(input_device(body)))
    found = []
    for place, layer in enumerate(layers):
        embedded = given["inputs_embeds"].detach().requires_grad_()
        with torch.enable_grad():
            features = pooled_features(
                model, {**given, "inputs_embeds": embedded}, pooling, (layer,)
            )
            (gradient,) = torch.autograd.grad(score(features, place).sum(), embedded)
        with torch.no_grad():
            moved = raise_score(embedded.detach(), gradient, epsilon)
            features = pooled_features(model, {**given, "inputs_embeds": moved}, pooling, (layer,))
            found.append(score(features, place))
    return torch.stack(found, -1)
