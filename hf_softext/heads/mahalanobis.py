"""Inputs that a fitted classifier should not answer, told by their distance from its classes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from hf_softext.heads.backbone import backbone, evaluating
from hf_softext.heads.features import Extraction, extract_features
from hf_softext.heads.labels import check_rows, dataset_labels
from hf_softext.heads.mahalanobis_ensemble import layer_weights, threshold
from hf_softext.heads.mahalanobis_input import scores_of_moved_inputs
from hf_softext.heads.mahalanobis_layers import LEDOIT_WOLF, LayerGaussians
from hf_softext.heads.pooling import check_pooling, pooled_features
from hf_softext.heads.saved_head import SavedHead
from hf_softext.heads.token_rows import token_rows


class MahalanobisDetector(SavedHead, nn.Module):
    r"""Class Gaussians with one covariance for each of some layers, fitted behind a model.

    $$M_\ell(x) = \max_c -\tfrac12 (f_\ell(x) - \mu_{\ell c})^\top \Sigma_\ell^{-1} (f_\ell(x) -
    \mu_{\ell c})$$

    and $s(x) = w \cdot M(x) + b$ over the layers; x is out of distribution where s(x) is below a
    threshold, or is NaN.

        detector = MahalanobisDetector().fit(model, tokenizer, train)
        detector.calibrate(detector.score_dataset(model, tokenizer, held_out))
        detector.is_ood(detector.score(model, tokenizer(texts, padding=True, return_tensors="pt")))

    Args:
        layers: numbers of hidden states, 0 the embeddings, -1 the last; the paper takes all.
        pooling: "cls", "last", "mean", "cls_mean" or "last_mean". The paper averages over the
            places of an image, as "mean" does over tokens.
        shrinkage: $\lambda$ in $\Sigma + \lambda\frac{\mathrm{tr}\,\Sigma}{D} I$, or "ledoit_wolf",
            which estimates how far $\Sigma$ is to move to $\frac{\mathrm{tr}\,\Sigma}{D} I$. The
            authors use neither (0), which features of an overfitted model, or fewer rows than
            dimensions, do not stand.
        epsilon: step of the input preprocessing, in the unit of the token embeddings; 0: none. The
            authors choose it from 0 to 0.01, in standardised pixels, by rows out of distribution.

    Attributes:
        id2label: names of the classes, by number, where labels were names.
        threshold: below it a row is out of distribution; NaN before `calibrate`.
        weights: w, (L,) float64.
        bias: b.

    Raises:
        ValueError: an argument out of range.

    Notes:
        Scores are float64, in which whitening is safe; `detector.float()` is for devices without.
        The model is compared with the one of `fit` once for each that is given, and not again
        should it be trained further.

        The threshold needs no rows out of distribution. Where papers chose epsilon and weights with
        them, their numbers are optimistic.

    Reference:
        K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting
        Out-of-Distribution Samples and Adversarial Attacks", 2018, arXiv 1807.03888.
    """

    name: ClassVar[str] = "mahalanobis"
    kinds: ClassVar[dict[str, tuple[type, ...]]] = {
        "layers": (list,),
        "pooling": (str,),
        "shrinkage": (float, int, str),
        "epsilon": (float, int),
        "backbone": (dict, type(None)),
        "id2label": (dict,),
    }
    weights: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(
        self,
        layers: Sequence[int] = (-1,),
        pooling: str = "mean",
        shrinkage: float | str = 1e-4,
        epsilon: float = 0.0,
    ):
        super().__init__()
        check_pooling(pooling)
        if not layers or not all(type(layer) is int for layer in layers):
            raise ValueError(f"layers={layers!r} must name at least one layer by its number.")
        if shrinkage != LEDOIT_WOLF and (isinstance(shrinkage, str) or not shrinkage >= 0):
            raise ValueError(f"shrinkage={shrinkage!r} must be at least 0, or {LEDOIT_WOLF!r}.")
        if not epsilon >= 0:
            raise ValueError(f"epsilon={epsilon!r} must be at least 0.")
        self.layers, self.pooling = tuple(layers), pooling
        self.shrinkage, self.epsilon = shrinkage, epsilon
        self.gaussians = LayerGaussians(self.layers)
        count = len(self.layers)
        self.register_buffer("weights", torch.full((count,), 1.0 / count, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))
        self.register_buffer("threshold", torch.full((), torch.nan, dtype=torch.float64))

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Any,
        labels: Any = "label",
        **options: Unpack[Extraction],
    ) -> Self:
        """Fit on the rows that a classifier was trained on.

        Args:
            model: see `extract_features`, as for the dataset, the tokenizer and the options.
            tokenizer: of the model.
            dataset: the rows.
            labels: the column of their true classes, or the classes: numbers from 0 on, or names
                that `model.config.label2id` knows, or that are numbered in their order.
            **options: text_column, batch_size, max_length, cache_dir, progress.

        Raises:
            ValueError: as `extract_features` and `fit_features` say.
        """
        numbers, names = dataset_labels(dataset, labels, model)
        self.fit_features(self._extract(model, tokenizer, dataset, options), numbers)
        self.remember_backbone(model)
        self.id2label = names
        return self

    def fit_features(self, features: Tensor | Sequence[Tensor], labels: Any) -> Self:
        """Fit on features; what was calibrated before is forgotten.

        Args:
            features: (N, D) for each layer; or one tensor, as `extract_features` gives it, of which
                each layer has an equal share.
            labels: (N,), whole numbers from 0 on; every class has a row.

        Raises:
            ValueError: features or labels of another shape, a value that is not finite, a class
                without rows, or no two rows that differ within a class.
        """
        self.gaussians.fit(features, labels, self.shrinkage)
        self.to(self.gaussians.log_prior.device)
        self.weights.fill_(1.0 / len(self.layers))
        self.bias.zero_()
        self.threshold.fill_(torch.nan)
        self.remember_backbone(None)
        self.id2label = {}
        return self

    def score(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """M of one batch of inputs.

        Args:
            model: that of `fit`; it runs in evaluation mode.
            inputs: what the tokenizer gives, padded on either side.

        Returns:
            (B, L), high in distribution; NaN where features are NaN.

        Raises:
            ValueError: not fitted, another model, or as `pooled_features` says.
        """
        self.check_model(model)
        with torch.no_grad(), evaluating(backbone(model)):
            if self.epsilon:
                return scores_of_moved_inputs(
                    model, inputs, self.pooling, self.layers, self.epsilon, self._layer_score
                )
            return self.score_features(pooled_features(model, inputs, self.pooling, self.layers))

    def score_dataset(
        self, model: Any, tokenizer: Any, dataset: Any, **options: Unpack[Extraction]
    ) -> Tensor:
        """M of every row of a dataset, (N, L) on the CPU; arguments as of `fit`.

        With an epsilon above 0 nothing is kept in `cache_dir`: features are of no use then.

        Raises:
            ValueError: not fitted, another model, or as `extract_features` says.
        """
        self.check_model(model)
        if not self.epsilon:
            return self.score_features(self._extract(model, tokenizer, dataset, options)).cpu()
        column, length = options.get("text_column", "text"), options.get("max_length")
        rows = token_rows(dataset, tokenizer, backbone(model), column, length)
        found = torch.empty(len(rows), len(self.layers), dtype=self.weights.dtype)
        batches = rows.batches(options.get("batch_size", 32), options.get("progress", True))
        for chosen in batches:
            found[chosen] = self.score(model, rows.batch(chosen)).cpu()
        return found

    def score_features(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """M from features as `fit_features` takes them; (B, L), differentiable."""
        return self.gaussians(features).amax(-1)

    def class_scores(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """The score of every class, before the maximum, (B, L, C)."""
        return self.gaussians(features)

    def predict_features(self, features: Tensor | Sequence[Tensor], prior: bool = True) -> Tensor:
        r"""The class of each row by the last of the layers, (B,).

        Args:
            features: as `fit_features` takes them.
            prior: whether $\ln\pi_c$ counts, as in linear discriminant analysis; the paper's
                classifier has equal classes.
        """
        scores = self.gaussians(features)[:, -1]
        return (scores + self.gaussians.log_prior if prior else scores).argmax(-1)

    @torch.no_grad()
    def calibrate(
        self, inside: Tensor, outside: Tensor | None = None, *, fpr: float = 0.05
    ) -> Self:
        """Draw the line, and weigh the layers.

        Args:
            inside: (N, L), scores of rows in distribution that are not those of `fit`.
            outside: (N', L), scores of rows out of distribution; None: no use is made of any. See
                `layer_weights`.
            fpr: share of rows in distribution that may be turned away; see `threshold`, whose
                promise is a little optimistic where `outside` is given or there are several layers,
                as the weights then come from the same rows.

        Raises:
            ValueError: shapes that do not fit, values that are not finite, or too few rows.
        """
        for what, rows in (("inside", inside), ("outside", outside)):
            if rows is not None:
                check_rows(rows, what)
                if rows.shape[1] != len(self.layers):
                    raise ValueError(
                        f"{what} of shape {tuple(rows.shape)} must have a column for each of the "
                        f"{len(self.layers)} layers."
                    )
        inside = inside.to(self.weights)
        weights, bias = torch.ones_like(self.weights), 0.0
        if len(self.layers) > 1 or outside is not None:
            outside = None if outside is None else outside.to(self.weights)
            weights, bias = layer_weights(inside, outside)
        line = threshold(inside @ weights.to(inside) + bias, fpr)
        self.weights.copy_(weights)
        self.bias.fill_(bias)
        self.threshold.fill_(line)
        return self

    def combine(self, scores: Tensor) -> Tensor:
        """s of scores (B, L): (B,), high in distribution."""
        return scores.to(self.weights) @ self.weights + self.bias

    def is_ood(self, scores: Tensor) -> Tensor:
        """Whether rows with these scores (B, L) are out of distribution: bool (B,); rows with a
        score that is not finite are.

        Raises:
            ValueError: there is no threshold yet.
        """
        if bool(self.threshold.isnan()):
            raise ValueError("the detector has no threshold: call calibrate first.")
        # a layer may have a weight below 0, which would turn infinitely far into near
        inside = scores.isfinite().all(1).to(self.weights.device)
        return ~(inside & (self.combine(scores) >= self.threshold))

    def _extract(self, model: Any, tokenizer: Any, dataset: Any, options: Extraction) -> Tensor:
        return extract_features(
            model, tokenizer, dataset, pooling=self.pooling, layers=self.layers, **options
        )

    def _layer_score(self, features: Tensor, place: int) -> Tensor:
        return self.gaussians.each[place](features).amax(-1)

    def _config(self) -> dict[str, Any]:
        if not len(self.gaussians.each):
            raise ValueError("the detector has not been fitted: there is nothing to save.")
        found = {name: getattr(self, name) for name in self.kinds}
        return found | {"layers": list(self.layers), "id2label": dict(self.id2label)}

    def _tensors(self) -> dict[str, Tensor]:
        return self.state_dict()

    @classmethod
    def _restored(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        found = cls(config["layers"], config["pooling"], config["shrinkage"], config["epsilon"])
        found.backbone = config["backbone"]
        found.id2label = config["id2label"]
        mark = "gaussians."
        inner = {key.removeprefix(mark): one for key, one in tensors.items() if mark in key}
        found.gaussians = LayerGaussians.restored(found.layers, inner)
        found.to(tensors["weights"].dtype).load_state_dict(tensors)
        return found
