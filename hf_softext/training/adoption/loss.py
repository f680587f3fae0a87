"""How far a student is from its teacher, layer by layer."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# which hidden states a model may return, and the mask of their tokens
_KINDS = (
    ("hidden_states", "attention_mask"),
    ("encoder_hidden_states", "attention_mask"),
    ("decoder_hidden_states", "decoder_attention_mask"),
)


def adoption_loss(
    student: Any, teacher: Any, inputs: dict[str, Tensor], centers: list[Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Sum of the adoption loss over the real tokens of a batch, and their number.

    $$\sum_n \Big[\frac1{|S|}\sum_{s\in S} \frac{\lVert h_s(n)-h^*_s(n)\rVert^2}
    {\lVert h^*_s(n)-c_s\rVert^2} + \mathrm{KL}\big(p^*(n)\,\Vert\,p(n)\big)\Big]$$

    Measuring from the center of each layer leaves out what all tokens share (a few dimensions of
    BERT's states, for example), which says nothing and would drown the rest.

    Args:
        student: outputs of the student, with hidden states.
        teacher: outputs of the teacher, with hidden states.
        inputs: what both were called with, for its `attention_mask` and `decoder_attention_mask`.
        centers: mean state (D,) of each of the teacher's layers, from `layer_centers`.
    """
    total, items, masks, layer = torch.zeros(()), torch.zeros(()), [], iter(centers)
    for states, targets, mask in _pairs(student, teacher, inputs):
        errors = [
            relative_error(h, target, next(layer))
            for h, target in zip(states, targets, strict=True)
        ]
        total = total + (torch.stack(errors).mean(dim=0) * mask).sum()
        items = items + mask.sum()
        masks.append(mask)
    logits = getattr(student, "logits", None)
    if logits is not None and masks:
        divergence = F.kl_div(
            F.log_softmax(logits.float(), -1),
            F.log_softmax(teacher.logits.float(), -1),
            reduction="none",
            log_target=True,
        ).sum(-1)
        # logits of a whole sequence count once for each of its tokens
        mask = masks[-1].sum(-1) if divergence.dim() == 1 else masks[-1]
        # those that belong to neither (pixels, boxes) are left to the hidden states
        if divergence.shape == mask.shape:
            total = total + (divergence * mask).sum()
    return total, items


def layer_centers(teacher: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Mean over the real tokens of each of a model's hidden states, in the loss's order."""
    return [
        (state.float() * mask[..., None]).sum((0, 1)) / mask.sum()
        for states, _, mask in _pairs(teacher, teacher, inputs)
        for state in states
    ]


def relative_error(states: Tensor, targets: Tensor, center: Tensor) -> Tensor:
    """Squared distance of (B, T, D) states to their targets, over the targets' to the center."""
    targets = targets.float()
    spread = (targets - center).square().sum(-1)
    return (states.float() - targets).square().sum(-1) / spread.clamp(min=1e-12)


def mean_pool(outputs: Any, mask: Tensor | None) -> Tensor:
    """Mean of the last hidden states (an encoder's, if there is one) over the real tokens."""
    states = getattr(outputs, "encoder_hidden_states", None) or outputs.hidden_states
    weight = _token_mask(mask, states[-1])[..., None]
    return (states[-1].float() * weight).sum(1) / weight.sum(1)


def _pairs(first: Any, second: Any, inputs: dict[str, Tensor]) -> Iterator[tuple]:
    for kind, mask_name in _KINDS:
        states, targets = getattr(first, kind, None), getattr(second, kind, None)
        if states is not None and targets is not None:
            yield states, targets, _token_mask(inputs.get(mask_name), targets[-1])


def _token_mask(mask: Tensor | None, states: Tensor) -> Tensor:
    if mask is not None and mask.shape == states.shape[:2]:
        return mask.float()
    return torch.ones(states.shape[:2], device=states.device)
