"""A loss by name for trainers that are not ours."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_softext.losses import SoftextLoss, get_loss
from hf_softext.training.loss_columns import check_kind, trainer_for
from hf_softext.training.problem import aligned_labels, is_causal


def make_compute_loss_func(
    loss: str | SoftextLoss, model: Any, **kwargs: Any
) -> Callable[..., Tensor]:
    """A loss as `compute_loss_func` of the stock Trainer, Seq2SeqTrainer or TRL's SFTTrainer.

        Trainer(model=model, compute_loss_func=make_compute_loss_func("gce", model, q=0.7), ...)

    Args:
        loss: a name of `list_losses()`, or a loss.
        model: the model that is trained: says whether labels are shifted and what the loss must be
            for.
        **kwargs: arguments of the loss.

    Returns:
        A function of outputs, labels and `num_items_in_batch`, the number of labels in the whole
        optimizer step.

    Raises:
        ValueError: a loss that needs more than logits and labels, has a state, weighs its classes,
            ignores another label than -100, is no sum over rows, or is for another kind of problem:
            use the Trainer that the message names.
    """
    made = get_loss(loss, **kwargs)
    reasons = {
        f"needs {', '.join(sorted(made.needs))}": made.needs,
        "has a state that must be saved": made.stateful or made.fits,
        "is divided by the weights of the labels": made.class_weight is not None,
        "is divided by the labels other than ignore_index": made.ignore_index != -100,
        "is no sum over rows": not made.decomposable,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"loss {made.name!r} {reason}, which the stock Trainer cannot do: use "
                f"{trainer_for(made)}."
            )
    check_kind(made, model)
    causal = is_causal(model)

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if labels is None:
            raise ValueError("the batch has no 'labels' for the loss.")
        if num_items_in_batch is not None and labels.is_floating_point() and labels.dim() > 1:
            # the Trainer counts the elements of multi-hot labels
            num_items_in_batch = num_items_in_batch / (1 if made.elementwise else labels.shape[-1])
        aligned = aligned_labels({"labels": labels}, causal)
        made.train(outputs_need_grad(logits))
        return made(logits, aligned, num_items=num_items_in_batch)

    return compute_loss


def outputs_need_grad(logits: Tensor) -> bool:
    """Whether this is training; the function sees no model."""
    return logits.requires_grad
