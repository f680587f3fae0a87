"""A second output layer on the features of a model, for as long as it is trained."""

from typing import Any

from torch import Tensor, nn

from hf_softext.training.output_layer import OutputLayer
from hf_softext.training.problem import bare

KINDS = ("linear", "mlp")
# what it is called within the model
NAME = "softext_second_head"
# width of the hidden layer and dropout, as in the authors' code
HIDDEN, DROPOUT = 200, 0.1


class SecondHead(nn.Module):
    """Logits from the input of a model's output layer, beside the model's own.

    Part of the model for optimizers and for wrappers for several processes, but not of its
    `state_dict`: nothing that is saved or loaded with the model knows of it.

    Args:
        kind: "linear", or "mlp": Linear(D, 200), dropout of 0.1, batch normalisation, ReLU,
            Linear(200, C).
        width: D, of the features.
        classes: C.

    Raises:
        ValueError: another kind.
    """

    def __init__(self, kind: str, width: int, classes: int):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"aux_head={kind!r} must be one of {', '.join(KINDS)}.")
        self.kind = kind
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(width, classes))
        else:
            self.layers = nn.Sequential(
                nn.Linear(width, HIDDEN),
                nn.Dropout(DROPOUT),
                # it never evaluates, so that nothing would read running statistics
                nn.BatchNorm1d(HIDDEN, track_running_stats=False),
                nn.ReLU(),
                nn.Linear(HIDDEN, classes),
            )
        self.register_load_state_dict_post_hook(_not_missing)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) for features (..., D), in the precision of its own weights.

        Raises:
            ValueError: a single row for "mlp".
        """
        last: Any = self.layers[-1]
        rows = features.reshape(-1, features.shape[-1]).to(last.weight.dtype)
        if self.kind == "mlp" and len(rows) < 2:
            raise ValueError(
                "aux_head='mlp' normalises over the rows of a micro-batch, and this one has a "
                "single row: use dataloader_drop_last=True, another batch size, or "
                "aux_head='linear'."
            )
        return self.layers(rows).reshape(*features.shape[:-1], -1)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Its own, where it is asked itself; nothing as a part of the model."""
        if destination is not None:
            return destination
        return super().state_dict(*args, **kwargs)


def attach_second_head(model: nn.Module, kind: str) -> SecondHead:
    """Give a model a second head, whose logits it returns as `aux_logits` in training.

    Args:
        model: the model, not yet wrapped for several processes.
        kind: see `SecondHead`.

    Returns:
        The head, which is a part of the model now.

    Raises:
        ValueError: no linear layer of the model has as many outputs as there are classes, or
            several do that differ in their inputs.
    """
    inner: Any = bare(model)
    layer = OutputLayer(model)
    classes = inner.config.num_labels
    linear = [module for module in inner.modules() if isinstance(module, nn.Linear)]
    widths = {module.in_features for module in linear if module.out_features == classes}
    if len(widths) != 1:
        raise ValueError(
            f"{type(inner).__name__} has linear layers with {classes} outputs and {sorted(widths)} "
            "inputs: which is the output layer cannot be told, so that no second one is possible."
        )
    head = SecondHead(kind, widths.pop(), classes)
    model.add_module(NAME, head.to(inner.device))

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            layer.features = None
            return None
        features, _ = layer.take(output["logits"])
        # no ModelOutput, which could not be rebuilt with a field that its class lacks
        return {**output, "aux_logits": head(features)}

    model.register_forward_hook(add)
    return head


def _not_missing(head: SecondHead, keys: Any) -> None:
    """A checkpoint of the model lacks nothing because it lacks the second head."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if f"{NAME}." not in key]
