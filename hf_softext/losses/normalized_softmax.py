"""Cross-entropy of cosines, and classes that training never saw."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_softext.functional.unit_rows import unit_rows
from hf_softext.losses.base import SoftextLoss

FEATURE_NORMS = ("l2", "layernorm+l2")


def _on_sphere(features: Tensor, feature_norm: str) -> Tensor:
    """Features of length 1, in float32 or float64; centred first under "layernorm+l2"."""
    x = features if features.dtype == torch.float64 else features.float()
    if feature_norm != "l2":
        # what layer normalisation divides by cancels in the length
        x = x - x.mean(-1, keepdim=True)
    return unit_rows(x)


def _check_feature_norm(feature_norm: str) -> None:
    if feature_norm not in FEATURE_NORMS:
        raise ValueError(
            f"feature_norm={feature_norm!r} must be one of {', '.join(FEATURE_NORMS)}."
        )


class NormalizedSoftmaxLoss(SoftextLoss):
    r"""Cross-entropy of the cosines between features and the rows of the output layer.

    $$z_k = \frac{1}{T}\,\frac{h}{\lVert h\rVert}\cdot\frac{w_k}{\lVert w_k\rVert}, \qquad
    \ell = \log\sum_k e^{z_k} - z_y$$

    Neither the length of features nor of rows matters, and the layer's bias takes no part. After
    training, `fold` writes the normalised rows into the layer, so that the plain model decides as
    the loss did; `PrototypeClassifier` uses the features for classes that training never saw.

    Args:
        temperature: T above 0; 0.05 is the default of pytorch-metric-learning.
        feature_norm: "l2", features of length 1; "layernorm+l2", layer normalisation without
            parameters first. The paper's abstract speaks of a constraint on the representation;
            that it is one of these is inferred.
        **common: those of `SoftextLoss`.

    Notes:
        Needs `features`, (..., D), what goes into the output layer, and `head_weight`, (C, D), that
        layer's weight; in evaluation too, since the loss cannot be had from the logits.

        The gradient is orthogonal to $h$ and goes as $1/\lVert h\rVert$. With C classes no loss is
        below $\log(1 + (C-1)\,e^{-C/(T(C-1))})$; to give a label the probability P, T may be at
        most $C / ((C-1)\log\frac{(C-1)P}{1-P})$.

    Reference:
        R. S. Pereira, A. Joly, P. Valduriez, F. Porto, "Hyperspherical embedding for novel class
        classification", 2021, arXiv 2102.03243. The loss: F. Wang, X. Xiang, J. Cheng, A. L.
        Yuille, "NormFace: L2 Hypersphere Embedding for Face Verification", 2017, arXiv 1704.06369;
        A. Zhai, H.-Y. Wu, "Classification is a Strong Baseline for Deep Metric Learning", 2018,
        arXiv 1811.12649.
    """

    name = "normalized_softmax"
    kinds = frozenset({"multiclass"})
    needs = frozenset({"features", "head_weight"})

    def __init__(self, temperature: float = 0.05, feature_norm: str = "l2", **common: Any):
        super().__init__(**common)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature!r} must be above 0, and finite.")
        _check_feature_norm(feature_norm)
        self.temperature = temperature
        self.feature_norm = feature_norm

    def scores(self, features: Tensor, head_weight: Tensor) -> Tensor:
        """The logits that the loss is the cross-entropy of: cosines divided by the temperature.

        Args:
            features: (..., D), what goes into the output layer.
            head_weight: (C, D), the layer's weight.

        Returns:
            (..., C), float32 (float64 for float64 features).
        """
        unit = _on_sphere(features, self.feature_norm)
        return unit @ unit_rows(head_weight.to(unit)).T / self.temperature

    def per_sample(
        self,
        logits: Tensor,
        labels: Tensor,
        features: Tensor | None = None,
        head_weight: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """(N,) for features (N, D), head_weight (C, D) and labels (N,); the logits do not count."""
        if features is None or head_weight is None:
            raise ValueError(f"{self.name!r} needs features and head_weight, also in evaluation.")
        if len(head_weight) != logits.shape[-1]:
            raise ValueError(
                f"head_weight has {len(head_weight)} rows, and there are {logits.shape[-1]} logits."
            )
        scores = self.scores(features, head_weight)
        losses = nn.functional.cross_entropy(scores, labels, reduction="none")
        # distributed training waits for the gradient of the layer's bias, which is 0
        return losses + 0 * logits.sum(-1)

    @torch.no_grad()
    def fold(self, head: nn.Linear) -> None:
        """Write into a trained output layer what the loss made of it, in place; once, at the end.

        The layer's logits are then the `scores` times the length of the features (of the centred
        ones under "layernorm+l2"): the same order of classes in every row, not the same
        probabilities.

        Args:
            head: the layer whose weight was `head_weight`; a bias becomes 0.
        """
        rows = unit_rows(head.weight.double())
        if self.feature_norm != "l2":
            # w . (h - mean h) is (w - mean w) . h
            rows = rows - rows.mean(-1, keepdim=True)
        head.weight.copy_(rows / self.temperature)
        if head.bias is not None:
            head.bias.zero_()


class PrototypeClassifier:
    r"""The class whose mean feature points most nearly the same way.

    $$c_k = \frac{m_k}{\lVert m_k\rVert},\quad m_k = \frac{1}{n_k}\sum_{i: y_i = k}
    \frac{h_i}{\lVert h_i\rVert}, \qquad \hat y(h) = \arg\max_k \frac{h}{\lVert h\rVert}\cdot c_k$$

    For classes that a model trained with `NormalizedSoftmaxLoss` never saw: a few features of each
    are enough, and nothing is trained.

    Args:
        threshold: a feature whose largest cosine is below it belongs to no known class; None, the
            default, for always naming one.
        feature_norm: as for the loss that the features were trained with.

    Attributes:
        classes: (C,), int64, ascending: the labels seen by `fit`.
        prototypes: (C, D), rows of length 1.
    """

    classes: Tensor
    prototypes: Tensor

    def __init__(self, threshold: float | None = None, feature_norm: str = "l2"):
        if threshold is not None and not -1 <= threshold <= 1:
            raise ValueError(f"threshold={threshold!r} must be a cosine, from -1 to 1, or None.")
        _check_feature_norm(feature_norm)
        self.threshold = threshold
        self.feature_norm = feature_norm

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Learn the prototypes, in place of those that were there.

        Args:
            features: (N, D), N at least 1.
            labels: (N,), integers from 0; not all need occur.

        Raises:
            ValueError: no features, another number of labels, or a label below 0.
        """
        if len(features) == 0 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit features of shape "
                f"{tuple(features.shape)}."
            )
        if bool((labels < 0).any()):
            raise ValueError(f"labels: {int(labels.min())} is below 0, which means no class.")
        unit = _on_sphere(features, self.feature_norm)
        self.classes, of = labels.unique(return_inverse=True)
        sums = unit.new_zeros(len(self.classes), unit.shape[-1]).index_add(0, of, unit)
        self.prototypes = unit_rows(sums)
        return self

    def cosine(self, features: Tensor) -> Tensor:
        """(..., C), the cosine of features (..., D) with each prototype."""
        unit = _on_sphere(features, self.feature_norm)
        return unit @ self.prototypes.to(unit).T

    def predict(self, features: Tensor) -> Tensor:
        """(...), the label for features (..., D); -1 where no cosine reaches the threshold."""
        best, at = self.cosine(features).max(-1)
        known = self.classes.to(at.device)[at]
        return known if self.threshold is None else known.masked_fill(best < self.threshold, -1)
