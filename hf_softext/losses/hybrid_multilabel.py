"""Weighted binary cross-entropy, the correlation of labels, and a contrast of features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional.unit_rows import unit_rows
from hf_softext.losses.base import SoftextLoss


class HybridMultilabelLoss(SoftextLoss):
    r"""Three terms for labels that are rare and come together.

    $$L = a\,L_{\text{bce}} + b\,L_{\text{corr}} + c\,L_{\text{con}}$$

    Binary cross-entropy, the positives of label $l$ weighted by $(N-n_l)/n_l$ where $n_l$ of the N
    training rows have it:

    $$L_{\text{bce}} = \text{mean}_{il}\; w_l\,y_{il}\log(1+e^{-z_{il}}) +
    (1-y_{il})\log(1+e^{z_{il}})$$

    With $C_{lm}$ the correlation of labels in training and $p = \sigma(z)$, labels that come
    together get like probabilities, labels that exclude each other opposite ones:

    $$L_{\text{corr}} = \text{mean}_i\,\text{mean}_{l\ne m}\; \max(C_{lm},0)\,(p_{il}-p_{im})^2 +
    \max(-C_{lm},0)\,(p_{il}+p_{im}-1)^2$$

    With $s_{ij}$ the cosine of two rows' features and $J_{ij}$ the Jaccard index of their labels,
    rows attract each other as much as they share labels:

    $$L_{\text{con}} = \text{mean}_i\; -\frac{\sum_{j\ne i} J_{ij}\,\log\big(e^{s_{ij}/T} /
    \sum_{k\ne i} e^{s_{ik}/T}\big)}{\sum_{j\ne i} J_{ij}}$$

    over the rows that share a label with another one of the batch.

    Args:
        bce: a, 1 by default.
        correlation: b, 0.1 by default.
        contrast: c, 0.1 by default.
        temperature: T of the contrast, above 0; 0.1 by default.
        max_weight: weights of positives are kept from 1 / max_weight to max_weight (10 by
            default), as one for a label seen once is of the size of the data; 1 for no weights.
        **common: those of `SoftextLoss`.

    Notes:
        The paper's abstract names the ingredients: class weights, a matrix of label correlations,
        contrastive learning. Its equations could not be read; all that is written above, and all
        defaults, are this package's.

        `fit` takes weights and correlations from the training labels, into buffers. Needs
        `features`, (..., D); in evaluation without them the contrast is left out. The contrast is
        within the micro-batch of one process; a single row has none.

    Reference:
        M. A. Aslam, W. Jun, N. Ahmed, M. I. Zaman, L. Yanan, H. Hongfei, W. Shiyu, X. Liu,
        "Improving Arabic Multi-Label Emotion Classification using Stacked Embeddings and Hybrid
        Loss Function", 2024, arXiv 2410.03979 (version 3; version 2 is withdrawn).
    """

    name = "hybrid_multilabel"
    kinds = frozenset({"multilabel"})
    decomposable = False
    fits = True
    needs = frozenset({"features"})

    positive_weight: Tensor
    label_correlation: Tensor

    def __init__(
        self,
        bce: float = 1.0,
        correlation: float = 0.1,
        contrast: float = 0.1,
        temperature: float = 0.1,
        max_weight: float = 10.0,
        **common: Any,
    ):
        super().__init__(**common)
        for name, value in (("bce", bce), ("correlation", correlation), ("contrast", contrast)):
            if not value >= 0:
                raise ValueError(f"{name}={value!r} must be at least 0.")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r} must be above 0.")
        if not max_weight >= 1:
            raise ValueError(f"max_weight={max_weight!r} must be at least 1.")
        self.bce = bce
        self.correlation = correlation
        self.contrast = contrast
        self.temperature = temperature
        self.max_weight = max_weight
        self.register_buffer("positive_weight", torch.zeros(0))
        self.register_buffer("label_correlation", torch.zeros(0, 0))

    @torch.no_grad()
    def fit(self, labels: Tensor) -> None:
        """Weights and correlations of the training labels.

        Args:
            labels: (N, C), multi-hot; rows of `ignore_index` do not count.

        Raises:
            ValueError: another shape, or no row that counts.
        """
        if labels.dim() != 2:
            raise ValueError(f"labels of shape {tuple(labels.shape)} must be multi-hot, (N, C).")
        y = labels[(labels != self.ignore_index).any(-1)].double()
        if len(y) == 0:
            raise ValueError("labels: there is no training row that counts.")
        mean = y.mean(0)
        # a label that no row has, or every row, would divide by 0 on one side
        weight = ((1 - mean) / mean).clamp(1 / self.max_weight, self.max_weight)
        centred = y - mean
        covariance = centred.T @ centred / len(y)
        scale = covariance.diagonal().sqrt()
        scale = scale[:, None] * scale
        constant = scale <= 1e-12
        phi = torch.where(constant, 0.0, covariance / scale.masked_fill(constant, 1.0))
        device = self.positive_weight.device
        self.positive_weight = weight.float().to(device)
        self.label_correlation = phi.fill_diagonal_(0.0).float().to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # how many labels there are is known from fit, or from what is loaded
        for name in ("positive_weight", "label_correlation"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def over_batch(
        self, logits: Tensor, labels: Tensor, features: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """A scalar for logits (N, C), labels (N, C) and features (N, D)."""
        known, classes = len(self.positive_weight), logits.shape[-1]
        if known != classes:
            raise ValueError(
                f"{self.name!r} has seen training labels of {known} columns, and there are "
                f"{classes} logits: call fit(labels) with the training labels first."
            )
        weight = self.positive_weight.to(logits)
        loss = self.bce * F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
        loss = loss + self.correlation * self._disagreement(logits)
        if features is not None and len(features) > 1:
            loss = loss + self.contrast * self._attraction(features.to(logits.dtype), labels)
        return loss

    def _disagreement(self, logits: Tensor) -> Tensor:
        # with u = 2p - 1 both squares are (u_l -+ u_m)^2 / 4: the Laplacian of a signed graph
        signed = self.label_correlation.to(logits)
        u = torch.tanh(logits / 2)
        form = (u.square() @ signed.abs().sum(0)) - ((u @ signed) * u).sum(-1)
        pairs = logits.shape[-1] * (logits.shape[-1] - 1)
        return form.mean() / (2 * max(pairs, 1))

    def _attraction(self, features: Tensor, labels: Tensor) -> Tensor:
        own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        common, size = labels @ labels.T, labels.square().sum(-1)
        union = size[:, None] + size - common
        # two rows without any label share none
        jaccard = torch.where((union <= 0) | own, 0.0, common / union.clamp(min=1e-12))
        unit = unit_rows(features)
        similarity = (unit @ unit.T / self.temperature).masked_fill(own, -torch.inf)
        attraction = (jaccard * similarity.log_softmax(-1).masked_fill(own, 0.0)).sum(-1)
        total = jaccard.sum(-1)
        shares = total > 0
        losses = -attraction / torch.where(shares, total, 1.0)
        return torch.where(shares, losses, 0.0).sum() / shares.sum().clamp(min=1)
