"""The loss of a causal language model, for any model class."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Any = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each token given those before it, in the form that the Trainer asks for.

    Some causal model classes of transformers (BART's, Pegasus' and their kin) neither shift the
    labels nor divide by the tokens of the whole optimizer step; this is right for all of them.

    Args:
        outputs: the model's, with logits (B, L, V).
        labels: (B, L); -100 counts for nothing.
        num_items_in_batch: the number of labels that the sum is divided by; those of this batch by
            default.
        label_smoothing: share of the target that is spread over the vocabulary.

    Returns:
        A scalar, float32.
    """
    logits, labels = outputs["logits"][:, :-1].float(), labels[:, 1:].to(outputs["logits"].device)
    total = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if num_items_in_batch is None:
        num_items_in_batch = (labels != -100).sum().clamp(min=1)
    return total / num_items_in_batch
