"""The metrics, against scikit-learn and through `evaluate`."""

import evaluate
import numpy as np
import pytest
from sklearn import metrics

from hf_softext.metrics import BalancedAccuracy, FBeta, GMean, PrecisionAtK, f_beta, g_mean

DRAW = np.random.default_rng(0)
GUESS, TRUTH = DRAW.integers(0, 4, 60), DRAW.integers(0, 4, 60)
SCORES, MANY = DRAW.normal(size=(60, 5)), (DRAW.random((60, 5)) < 0.4).astype(int)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    # evaluate keeps what it is given in a file there
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def test_classes():
    given = {"predictions": GUESS, "references": TRUTH}
    recall = metrics.recall_score(TRUTH, GUESS, average=None)
    assert BalancedAccuracy().compute(**given) == {
        "balanced_accuracy": pytest.approx(metrics.balanced_accuracy_score(TRUTH, GUESS))
    }
    assert GMean().compute(**given)["g_mean"] == pytest.approx(np.prod(recall) ** 0.25)
    for beta in (0.5, 1.0, 2.0):
        for average in ("macro", "micro"):
            found = FBeta().compute(**given, beta=beta, average=average)["f_beta"]
            expected = metrics.fbeta_score(TRUTH, GUESS, beta=beta, average=average)
            assert found == pytest.approx(expected)
    one = f_beta(GUESS == 1, TRUTH == 1, average="binary")
    assert one == pytest.approx(metrics.f1_score(TRUTH == 1, GUESS == 1))


def test_many_labels():
    for average in ("macro", "micro"):
        expected = metrics.f1_score(MANY, SCORES > 0, average=average)
        assert f_beta(SCORES > 0, MANY, average=average) == pytest.approx(expected)
    found = PrecisionAtK().compute(predictions=SCORES, references=MANY, k=3)
    rows = zip(SCORES, MANY, strict=True)
    hits = [set(np.argsort(-s)[:3]) & set(np.flatnonzero(m)) for s, m in rows]
    assert found == {"precision_at_k": pytest.approx(np.mean([len(one) / 3 for one in hits]))}


def test_batches_and_combinations():
    together = evaluate.combine([BalancedAccuracy(), GMean()])
    together.add_batch(predictions=GUESS[:20], references=TRUTH[:20])
    together.add_batch(predictions=GUESS[20:], references=TRUTH[20:])
    assert together.compute()["g_mean"] == pytest.approx(g_mean(GUESS, TRUTH))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g_mean(np.array([]), np.array([])), "nothing to score"),
        (lambda: g_mean(GUESS[:3], TRUTH), "must have one shape"),
        (lambda: f_beta(GUESS, TRUTH, beta=0), "beta=0 must be above 0"),
        (lambda: f_beta(GUESS, TRUTH, average="weighted"), "average='weighted' must be"),
        (lambda: f_beta(SCORES > 0, MANY, average="binary"), "average='binary' is for classes"),
        (lambda: PrecisionAtK().compute(predictions=SCORES, references=MANY, k=6), "k=6 must be"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
