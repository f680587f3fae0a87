"""Selective metrics against slow definitions, scikit-learn, and through `evaluate`."""

from itertools import permutations

import evaluate
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from hf_softext.metrics.selective import (
    Aurc,
    Auroc,
    SelectiveAccuracy,
    TnrAtTpr,
    aurc,
    auroc,
    selective_accuracy,
    tnr_at_tpr,
)

DRAW = np.random.default_rng(0)
TRUTH = DRAW.integers(0, 4, 80)
GUESS = np.where(DRAW.random(80) < 0.7, TRUTH, DRAW.integers(0, 4, 80))
ADMIT = DRAW.random(80) < 0.5
# ties
SCORE = DRAW.integers(0, 9, 80) / 8
KIND = (DRAW.random(80) < 0.4).astype(int)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    # evaluate keeps what it is given in a file there
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def test_selective_accuracy():
    rows = [(g, t) for g, t, a in zip(GUESS, TRUTH, ADMIT, strict=True) if a]
    expected = {
        "accuracy": sum(g == t for g, t in rows) / len(rows),
        "admitted": len(rows) / 80,
        "lowest_by_class": min(
            np.mean([g == c for g, t in rows if t == c]) for c in {t for _, t in rows}
        ),
        "lowest_by_prediction": min(
            np.mean([t == c for g, t in rows if g == c]) for c in {g for g, _ in rows}
        ),
    }
    metric = SelectiveAccuracy()
    for part in (slice(30), slice(30, 80)):
        metric.add_batch(predictions=GUESS[part], references=TRUTH[part], admit=ADMIT[part])
    assert metric.compute() == pytest.approx(expected)
    # class 1 has no admitted row and no say
    few = selective_accuracy(np.array([0, 0, 2]), np.array([0, 1, 2]), np.array([1, 0, 1]))
    assert few == {
        "accuracy": 1.0,
        "admitted": pytest.approx(2 / 3),
        "lowest_by_class": 1.0,
        "lowest_by_prediction": 1.0,
    }
    none = selective_accuracy(GUESS, TRUTH, np.zeros(80))
    assert none.pop("admitted") == 0.0
    assert np.isnan(list(none.values())).all()


def test_aurc_is_the_mean_over_all_orders_of_ties():
    wrong, score = np.array([1, 0, 0, 1, 0, 1]), np.array([0.5, 0.9, 0.5, 0.1, 0.5, np.nan])
    orders = [one for one in permutations(range(6)) if _falls(np.nan_to_num(score, nan=-1)[[*one]])]
    assert len(orders) == 6
    areas = [np.mean([wrong[[*one[:k]]].mean() for k in range(1, 7)]) for one in orders]
    assert aurc(wrong, np.zeros(6, int), score) == pytest.approx(np.mean(areas))
    found = Aurc().compute(predictions=GUESS, references=TRUTH, confidence=SCORE)
    assert found == {"aurc": pytest.approx(aurc(GUESS, TRUTH, SCORE))}
    assert aurc(GUESS, TRUTH, np.ones(80)) == pytest.approx((GUESS != TRUTH).mean())
    best, worst = (aurc(GUESS, TRUTH, sign * (GUESS == TRUTH)) for sign in (1, -1))
    assert best < aurc(GUESS, TRUTH, SCORE) < worst
    assert aurc(TRUTH, TRUTH, SCORE) == 0.0


def _falls(values):
    return bool((np.diff(values) <= 0).all())


def test_detection():
    found = Auroc().compute(predictions=SCORE, references=KIND)
    assert found == {"auroc": pytest.approx(roc_auc_score(KIND, SCORE))}
    false, true, _ = roc_curve(KIND, SCORE, drop_intermediate=False)
    for tpr in (0.5, 0.9, 0.95, 1.0):
        found = TnrAtTpr().compute(predictions=SCORE, references=KIND, tpr=tpr)
        assert found == {"tnr_at_tpr": pytest.approx(1 - false[true >= tpr - 1e-9].min())}
    # 19 of 20 are 95 %, whatever rounding says
    scores = np.concatenate([np.arange(20), np.full(5, 0.5)])
    kinds = np.concatenate([np.ones(20), np.zeros(5)])
    assert tnr_at_tpr(scores, kinds) == 1.0
    # what has no score is turned away first
    scores[20:] = np.nan
    assert auroc(scores, kinds) == tnr_at_tpr(scores, kinds, 1.0) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selective_accuracy(GUESS, TRUTH, ADMIT[:3]), "must have one shape"),
        (lambda: aurc(np.array([]), np.array([]), np.array([])), "nothing to score"),
        (lambda: auroc(SCORE, np.ones(80)), "references has 80 rows of 1 and 0 of 0"),
        (lambda: tnr_at_tpr(SCORE, KIND, 0.0), "tpr=0.0 must be above 0"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
