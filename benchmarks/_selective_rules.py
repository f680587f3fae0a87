"""Rules that say which predictions of a classifier may be relied on."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from _selective_tasks import Part, halves
from torch import Tensor

from hf_softext.functional.nearest_rows import nearest_rows
from hf_softext.heads.mahalanobis import MahalanobisDetector
from hf_softext.heads.sdm import SdmHead

MAPIE = importlib.util.find_spec("mapie") is not None


@dataclass(frozen=True)
class Verdict:
    """What a rule says about rows.

    Attributes:
        prediction: (N,) classes.
        admit: (N,) bool.
        confidence: (N,), higher where the rule trusts more.
    """

    prediction: Tensor
    admit: Tensor
    confidence: Tensor


Rule = Callable[[Tensor], Verdict]


def rules(fit: Part, alpha: float, seed: int, **sdm: int) -> Iterator[tuple[str, float, Rule]]:
    """Every rule by name, with the seconds that its fit took; all see the same rows.

    Half of the rows fit a logistic regression, the other half calibrates; SDM divides them itself.
    """
    yield from _classic(fit, alpha, seed)
    yield from _sdm(fit, alpha, seed, **sdm)


def _classic(fit: Part, alpha: float, seed: int) -> Iterator[tuple[str, float, Rule]]:
    from sklearn.linear_model import LogisticRegression

    assert fit.y is not None
    one, other = halves(fit.y, seed)
    start = time.perf_counter()
    tried = [
        LogisticRegression(C=c, max_iter=300).fit(fit.x[one].numpy(), fit.y[one].numpy())
        for c in (1.0, 10.0, 100.0)
    ]
    model = max(tried, key=lambda model: model.score(fit.x[other].numpy(), fit.y[other].numpy()))
    weight, bias = (torch.tensor(found).float() for found in (model.coef_, model.intercept_))
    base = time.perf_counter() - start
    held, held_y = fit.x[other], fit.y[other]

    def logits(x: Tensor) -> Tensor:
        return x @ weight.T + bias

    def softmax(x: Tensor, scale: float = 1.0) -> Verdict:
        probs = (logits(x) * scale).softmax(1)
        top, prediction = probs.max(1)
        return Verdict(prediction, top >= alpha, top)

    yield "softmax", base, softmax

    start = time.perf_counter()
    scales = torch.logspace(-1, 1, 201)
    losses = [
        torch.nn.functional.cross_entropy(logits(held) * s, held_y).item() for s in scales.tolist()
    ]
    scale = scales[int(np.argmin(losses))].item()
    took = base + time.perf_counter() - start
    yield "temperature", took, lambda x: softmax(x, scale)

    if MAPIE:
        from mapie.classification import SplitConformalClassifier

        for score in ("lac", "aps"):
            start = time.perf_counter()
            sets = SplitConformalClassifier(
                model,
                confidence_level=alpha,
                conformity_score=score,
                prefit=True,
                random_state=seed,
            ).conformalize(held.numpy(), held_y.numpy())
            took = base + time.perf_counter() - start

            def singleton(x: Tensor, sets=sets) -> Verdict:
                found = torch.from_numpy(np.asarray(sets.predict_set(x.numpy())[1]))[:, :, 0]
                top, prediction = logits(x).softmax(1).max(1)
                own = found.gather(1, prediction[:, None])[:, 0]
                return Verdict(prediction, (found.sum(1) == 1) & own, top)

            yield f"{score.upper()} singleton", took, singleton

    start = time.perf_counter()
    detector = MahalanobisDetector(shrinkage="ledoit_wolf").fit_features(fit.x[one], fit.y[one])
    detector.calibrate(detector.score_features(held), fpr=0.05)
    took = base + time.perf_counter() - start

    def near_a_class(x: Tensor) -> Verdict:
        found = softmax(x, scale)
        scores = detector.score_features(x)
        return Verdict(
            found.prediction, found.admit & ~detector.is_ood(scores), detector.combine(scores)
        )

    yield "temperature + Mahalanobis gate", took, near_a_class

    start = time.perf_counter()
    line = nearest_rows(held, fit.x[one], 1)[1][:, 0].quantile(0.95)
    took = base + time.perf_counter() - start

    def near_a_row(x: Tensor) -> Verdict:
        found = softmax(x, scale)
        far = nearest_rows(x, fit.x[one], 1)[1][:, 0]
        return Verdict(found.prediction, found.admit & (far <= line), -far)

    yield "temperature + 1-NN gate", took, near_a_row


def _sdm(fit: Part, alpha: float, seed: int, **options: int) -> Iterator[tuple[str, float, Rule]]:
    start = time.perf_counter()
    head = SdmHead.fit_features(fit.x, fit.y, alpha=alpha, seed=seed, progress=False, **options)
    took = time.perf_counter() - start

    def output(x: Tensor, name: str) -> Verdict:
        found = head(x)
        probs = found.probs.max(1).values
        admit, confidence = {
            "SDM at alpha": (probs >= alpha, probs),
            "SDM region": (found.admit, found.rescaled_similarity),
            "SDM lower bound": (found.admit_lower, found.rescaled_similarity_lower),
        }[name]
        return Verdict(found.prediction, admit, confidence)

    for name in ("SDM at alpha", "SDM region", "SDM lower bound"):
        yield name, took, lambda x, name=name: output(x, name)
