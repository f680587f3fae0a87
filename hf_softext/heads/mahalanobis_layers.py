"""The Gaussian classes of each of some layers."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from hf_softext.functional.class_moments import class_moments
from hf_softext.functional.tied_gaussian import tied_covariance, tied_gaussian_scores, whitening
from hf_softext.heads.labels import check_rows, class_numbers, every_class

LEDOIT_WOLF = "ledoit_wolf"


class LayerGaussians(nn.Module):
    """Class means and one whitening for each layer, float64.

    Args:
        layers: their numbers.
    """

    log_prior: Tensor

    def __init__(self, layers: Sequence[int]):
        super().__init__()
        self.layers = tuple(layers)
        self.each = nn.ModuleList()
        self.register_buffer("log_prior", torch.zeros(0, dtype=torch.float64))

    @classmethod
    def restored(cls, layers: Sequence[int], tensors: dict[str, Tensor]) -> Self:
        """From a state dict; raises KeyError where it is of other layers."""
        found = cls(layers)
        for place in range(len(found.layers)):
            means, white = tensors[f"each.{place}.means"], tensors[f"each.{place}.white"]
            found.each.append(_Gaussian(means, white))
        found.log_prior = torch.empty_like(tensors["log_prior"])
        found.load_state_dict(tensors)
        return found

    @torch.no_grad()
    def fit(
        self, features: Tensor | Sequence[Tensor], labels: object, shrinkage: float | str
    ) -> None:
        """Fit; see `MahalanobisDetector.fit_features`."""
        split = self.split(features)
        for layer, rows in zip(self.layers, split, strict=True):
            check_rows(rows, f"features of layer {layer}")
        numbers = class_numbers(labels, len(split[0])).to(split[0].device)
        classes = every_class(numbers)
        count = torch.bincount(numbers)
        found = []
        for rows in split:
            means = class_moments(rows, numbers, classes).mean
            covariance = _shrunk_covariance(rows, numbers, means, shrinkage)
            found.append(_Gaussian(means, whitening(covariance)))
        self.each = nn.ModuleList(found)
        self.log_prior = (count / len(numbers)).double().log()

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """The score of every class by every layer, (B, L, C)."""
        if not len(self.each):
            raise ValueError("the detector has not been fitted: call fit or fit_features first.")
        pairs = zip(self.each, self.split(features), strict=True)
        return torch.stack([gaussian(rows) for gaussian, rows in pairs], 1)

    def split(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Features as one tensor a layer."""
        count = len(self.layers)
        if not isinstance(features, Tensor):
            if len(features) != count or len({len(one) for one in features}) > 1:
                raise ValueError(
                    f"features is a list of {len(features)} tensors: one for each of the {count} "
                    "layers, of equally many rows, is needed."
                )
            return list(features)
        if features.dim() != 2 or features.shape[1] % count:
            raise ValueError(
                f"features of shape {tuple(features.shape)} cannot be shared among {count} layers."
            )
        return list(features.chunk(count, dim=1))


class _Gaussian(nn.Module):
    means: Tensor
    white: Tensor

    def __init__(self, means: Tensor, white: Tensor):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("white", white)

    def forward(self, features: Tensor) -> Tensor:
        return tied_gaussian_scores(features.to(self.white.device), self.means, self.white)


def _shrunk_covariance(
    rows: Tensor, numbers: Tensor, means: Tensor, shrinkage: float | str
) -> Tensor:
    found = tied_covariance(rows, numbers, means)
    variance = found.matrix.trace() / len(found.matrix)
    if not variance > 0:
        raise ValueError(
            "features do not vary within any class: give at least two different rows of one."
        )
    identity = torch.eye(len(found.matrix)).to(found.matrix)
    if shrinkage == LEDOIT_WOLF:
        return torch.lerp(found.matrix, variance * identity, found.shrinkage)
    return found.matrix + float(shrinkage) * variance * identity
