"""From frozen features to the vectors that are compared, and to logits."""

import math

import torch
from torch import Tensor, nn


class ExemplarAdaptor(nn.Module):
    r"""$h' = W_g\,(h - \mu)/\sigma + b_g$ and $z' = W' h' + b'$.

    The paper writes the first as a convolution whose filters are as wide as the input: that is a
    linear layer, and there is no nonlinearity between the two. $\mu$ and $\sigma$ are two numbers,
    mean and standard deviation of all features of all training rows together.

    Args:
        num_features: D.
        exemplar_dim: M.
        num_labels: C.

    Reference:
        A. Schmaltz, "Similarity-Distance-Magnitude Activations", 2025, arXiv 2509.12760.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, num_features: int, exemplar_dim: int, num_labels: int):
        super().__init__()
        self.exemplar = nn.Linear(num_features, exemplar_dim)
        self.classifier = nn.Linear(exemplar_dim, num_labels)
        self.register_buffer("feature_mean", torch.zeros(()))
        self.register_buffer("feature_std", torch.ones(()))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights: uniform within 1 over the root of the layer's inputs, as torch does."""
        with torch.no_grad():
            for layer in (self.exemplar, self.classifier):
                bound = 1 / math.sqrt(layer.in_features)
                for parameter in (layer.weight, layer.bias):
                    drawn = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_((2 * drawn - 1) * bound)

    def standardize_by(self, features: Tensor) -> None:
        """Take mean and standard deviation from training features, (N, D)."""
        deviation, mean = torch.std_mean(features)
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(deviation)

    def standardize(self, features: Tensor) -> Tensor:
        """(B, D) to (B, D), float32."""
        return (features.float() - self.feature_mean) / self.feature_std

    def forward(self, standardized: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) to the vectors, (B, M), and the logits, (B, C); in float32 under autocast too."""
        with torch.autocast(standardized.device.type, enabled=False):
            exemplars = self.exemplar(standardized)
            return exemplars, self.classifier(exemplars)
