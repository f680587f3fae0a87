"""The layer that makes a model's logits, and what goes into it."""

from typing import Any

from torch import Tensor, nn

from hf_softext.training.problem import bare


class OutputLayer:
    """Keeps the input of the layer that makes the logits, of the last forward pass.

    Which layer that is shows when the model runs: of those with as many outputs as the model has
    classes, the last to be called.

    Args:
        model: the model, not yet wrapped for several processes.

    Raises:
        ValueError: no linear layer has as many outputs as the model has classes.
    """

    def __init__(self, model: nn.Module):
        inner: Any = bare(model)
        embeddings = getattr(inner, "get_output_embeddings", lambda: None)()
        if embeddings is None:
            classes = getattr(getattr(inner, "config", None), "num_labels", None)
            found = [
                module
                for module in inner.modules()
                if isinstance(module, nn.Linear) and module.out_features == classes
            ]
        else:
            found = [embeddings]
        if not found:
            raise ValueError(
                f"{type(inner).__name__} has no linear layer with as many outputs as classes, "
                "whose input the loss could be given."
            )
        self.module: Any = None
        self.features: Tensor | None = None
        for module in found:
            module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.module, self.features = module, inputs[0]

    def take(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Features (..., D) for logits (..., C), and the weight (C, D) of the layer; then forget.

        Raises:
            ValueError: the layer saw other positions than the logits have.
        """
        features, module = self.features, self.module
        self.features = None
        if features is None or features.shape[:-1] != logits.shape[:-1]:
            shape = None if features is None else tuple(features.shape)
            raise ValueError(
                f"the output layer saw features of shape {shape} for logits of shape "
                f"{tuple(logits.shape)}: a model that picks positions after its output layer "
                "cannot be trained with a loss on features."
            )
        weight = module.weight
        # sharded over processes
        return features, weight.full_tensor() if hasattr(weight, "full_tensor") else weight
