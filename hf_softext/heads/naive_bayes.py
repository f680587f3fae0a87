"""A linear probe in closed form."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_softext.functional.class_moments import ClassMoments, class_moments, merge_moments
from hf_softext.functional.naive_bayes import (
    naive_bayes_linear,
    naive_bayes_log_likelihood,
    shared_variance,
)
from hf_softext.heads.backbone import backbone, default_pooling, evaluating
from hf_softext.heads.features import Extraction, extract_features
from hf_softext.heads.labels import check_rows, class_numbers, dataset_labels, every_class
from hf_softext.heads.pooling import check_pooling, pooled_features
from hf_softext.heads.saved_head import SavedHead
from hf_softext.heads.user_warning import warn_user


class NaiveBayesProbe(SavedHead, nn.Module):
    r"""Gaussian naive Bayes with one variance for all classes: a linear head without training.

    $$p(k \mid x) \propto \pi_k \exp\Bigl(-\frac12\sum_j \frac{(x_j - \mu_{kj})^2}{\sigma_j^2}
    \Bigr) \propto \exp(w_k \cdot x + b_k)$$

    One pass over the rows, in any number of batches; `to_linear` is the same classifier as a layer.

        probe = NaiveBayesProbe().fit(model, tokenizer, train)
        probe.classify(model, tokenizer(texts, padding=True, return_tensors="pt")).argmax(-1)

    Args:
        layers: numbers of hidden states whose features are taken, by `fit`.
        pooling: "cls", "last", "mean", "cls_mean" or "last_mean"; None: what `default_pooling` says
            of the model.
        epsilon: added to the variances, 1e-9 in the authors' code.
        floor: least variance, as a share of the mean over the features; below it a feature that
            hardly varies would outweigh all others. Our own, with a warning; 0: none.

    Attributes:
        id2label: names of the classes, by number, where labels were names.
        moments: counts, means and squared deviations, float64; None before rows were seen.

    Raises:
        ValueError: an argument out of range.

    Notes:
        Against logistic regression: it needs fewer rows to be as good as it gets, which is less
        good where features depend on one another. `compare_probes` says which wins on given rows.

        Dependent features are counted as many times as they repeat one another, so that its
        probabilities are too sure: scale the temperature before a threshold is put on them.

        scikit-learn's GaussianNB is another classifier, with a variance for each class, which is
        not linear.

    Reference:
        C. Zheng, G. Wu, F. Bao, Y. Cao, C. Li, J. Zhu, "Revisiting Discriminative vs. Generative
        Classifiers: Theory and Implications", 2023, arXiv 2302.02334 (authors recalled).
    """

    name: ClassVar[str] = "naive_bayes"
    kinds: ClassVar[dict[str, tuple[type, ...]]] = {
        "layers": (list,),
        "pooling": (str, type(None)),
        "epsilon": (float, int),
        "floor": (float, int),
        "backbone": (dict, type(None)),
        "id2label": (dict,),
    }

    def __init__(
        self,
        layers: Sequence[int] = (-1,),
        pooling: str | None = None,
        epsilon: float = 1e-9,
        floor: float = 1e-6,
    ):
        super().__init__()
        if pooling is not None:
            check_pooling(pooling)
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon!r} must be above 0.")
        if not 0 <= floor < 1:
            raise ValueError(f"floor={floor!r} must be at least 0 and below 1.")
        self.layers, self.pooling, self._asked_pooling = tuple(layers), pooling, pooling
        self.epsilon, self.floor = epsilon, floor
        self._keep(None)

    @property
    def moments(self) -> ClassMoments | None:
        """Counts, means and squared deviations."""
        found = [getattr(self, name) for name in ClassMoments._fields]
        return None if found[0] is None else ClassMoments(*found)

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Any,
        labels: Any = "label",
        *,
        num_classes: int | None = None,
        **options: Unpack[Extraction],
    ) -> Self:
        """Fit on a dataset.

        Args:
            model: see `extract_features`, as for the dataset, the tokenizer and the options.
            tokenizer: of the model.
            dataset: the rows.
            labels: the column of their classes, or the classes: numbers from 0 on, or names that
                `model.config.label2id` knows, or that are numbered in their order.
            num_classes: C; None: as many as the labels show.
            **options: text_column, batch_size, max_length, cache_dir, progress.

        Raises:
            ValueError: as `extract_features` and `fit_features` say.
        """
        numbers, names = dataset_labels(dataset, labels, model)
        asked = self._asked_pooling
        pooling = default_pooling(model) if asked is None else asked
        features = extract_features(
            model, tokenizer, dataset, pooling=pooling, layers=self.layers, **options
        )
        self.fit_features(features, numbers, num_classes)
        self.pooling = pooling
        self.remember_backbone(model)
        self.id2label = names
        return self

    def fit_features(self, features: Tensor, labels: Any, num_classes: int | None = None) -> Self:
        """Fit on features (N, D) and their classes (N,); what was seen before is forgotten.

        Raises:
            ValueError: features or labels of another shape, a value that is not finite, or a class
                without rows.
        """
        self._keep(None)
        self.remember_backbone(None)
        self.id2label = {}
        self.partial_fit(features, labels, num_classes)
        self.linear()
        return self

    @torch.no_grad()
    def partial_fit(self, features: Tensor, labels: Any, num_classes: int | None = None) -> Self:
        """See more rows; in whatever parts they come, the probe is the same.

        Args:
            features: (N, D), floating point of any precision; D as before.
            labels: (N,), whole numbers from 0 to C - 1.
            num_classes: C; needed the first time, unless these labels show them all.

        Raises:
            ValueError: as `fit_features` says, or more classes or features than before.
        """
        check_rows(features)
        numbers = class_numbers(labels, len(features)).to(features.device)
        seen = self.moments
        if seen is not None:
            if num_classes not in (None, len(seen.count)):
                raise ValueError(f"num_classes={num_classes!r}: there were {len(seen.count)}.")
            classes = len(seen.count)
        else:
            classes = every_class(numbers) if num_classes is None else num_classes
        if int(numbers.max()) >= classes:
            raise ValueError(
                f"labels has {int(numbers.max())}, and there are {classes} classes: give "
                "num_classes with the first rows."
            )
        if seen is not None and features.shape[1] != seen.mean.shape[1]:
            raise ValueError(
                f"features of shape {tuple(features.shape)}: there were {seen.mean.shape[1]} "
                "columns before."
            )
        found = class_moments(features, numbers, classes)
        if seen is not None:
            found = merge_moments(seen, ClassMoments(*(one.to(seen.count) for one in found)))
        self._keep(found)
        return self

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of the posterior's logits, float64.

        Raises:
            ValueError: no rows yet, or a class without rows.

        Warns:
            UserWarning: features hardly vary within the classes; once for the rows of a fit.
        """
        moments = self._fitted()
        prior = moments.count / moments.count.sum()
        return naive_bayes_linear(moments.mean, self.variance(), prior)

    def variance(self) -> Tensor:
        """The variance of each feature, (D,) float64; raises and warns as `linear`."""
        found = shared_variance(self._fitted(), self.epsilon)
        if bool((found <= 2.0 * self.epsilon).all()):
            self._warn_once(
                "features do not vary within any class: the nearest class mean is predicted, and "
                "probabilities mean nothing. Give several rows of a class."
            )
            return found
        least = self.floor * found.mean()
        low = found < least
        if bool(low.any()):
            self._warn_once(
                f"{int(low.sum())} of {len(found)} features hardly vary within the classes: their "
                f"variance is taken to be {float(least):.1e}, {self.floor:.0e} of the mean."
            )
        return found.clamp(min=least)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D), float64; their softmax is the posterior."""
        weight, bias = self.linear()
        return F.linear(features.to(weight), weight, bias)

    def log_likelihood(self, features: Tensor) -> Tensor:
        r"""$\ln p(x \mid k)$ of features (B, D): (B, C) float64, without the prior."""
        means = self._fitted().mean
        return naive_bayes_log_likelihood(features.to(means), means, self.variance())

    def classify(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Logits (B, C) of one batch of inputs; see `pooled_features`.

        Raises:
            ValueError: not fitted by `fit`, or another model.
        """
        if self.backbone is None or self.pooling is None:
            raise ValueError("the probe was not fitted behind a model: call fit, or forward.")
        self.check_model(model)
        with torch.no_grad(), evaluating(backbone(model)):
            return self(pooled_features(model, inputs, self.pooling, self.layers))

    @torch.no_grad()
    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The probe as a layer, on the device of its moments."""
        weight, bias = self.linear()
        layer = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=dtype)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        return layer

    def _fitted(self) -> ClassMoments:
        moments = self.moments
        if moments is None:
            raise ValueError("the probe has not seen any rows: call fit or fit_features first.")
        if not bool(moments.count.all()):
            empty = int((moments.count == 0).int().argmax())
            raise ValueError(f"class {empty} of {len(moments.count)} has no row: give some of it.")
        return moments

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            warn_user(message)
        self._warned = True

    def _keep(self, moments: ClassMoments | None) -> None:
        # other rows, another warning
        self._warned = False
        for place, name in enumerate(ClassMoments._fields):
            self.register_buffer(name, None if moments is None else moments[place])

    def _config(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.kinds}
        return found | {"layers": list(self.layers), "id2label": dict(self.id2label)}

    def _tensors(self) -> dict[str, Tensor]:
        return self._fitted()._asdict()

    @classmethod
    def _restored(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        found = cls(config["layers"], config["pooling"], config["epsilon"], config["floor"])
        moments = ClassMoments(tensors["count"], tensors["mean"], tensors["spread"])
        size = (len(moments.count), moments.mean.shape[-1])
        if not moments.mean.shape == moments.spread.shape == size:
            raise ValueError("the moments are of different shapes.")
        found.backbone = config["backbone"]
        found.id2label = config["id2label"]
        found._keep(moments)
        return found
