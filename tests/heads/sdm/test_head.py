"""What a head promises about its predictions, and its updates without training."""

import copy
from functools import cache

import pytest
import torch

from hf_softext.heads.sdm import SdmConfig, SdmHead
from hf_softext.heads.sdm.diagnosis import EmptyRegionWarning, highest_alpha
from hf_softext.heads.sdm.output import SdmOutput
from tests.heads.sdm.cases import equal, head, may_be_empty, rows

RESCALING = {
    "estimator": "universal",
    "rescaler_epochs": 100,
    "rescaler_batch_size": 10,
    "rescaler_learning_rate": 1e-2,
}


@cache
def fitted(estimator):
    return head(**RESCALING if estimator == "universal" else {})


both = pytest.mark.parametrize("estimator", ["sdm_hr", "universal"])


def rows_of(output, chosen):
    return {
        name: value[chosen]
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and len(value)
    }


@both
def test_what_is_admitted_is_in_the_region_and_accurate(estimator):
    found = fitted(estimator)
    features, labels = rows(2000, seed=7)
    output = found(features)
    prediction = output.prediction
    assert torch.equal(prediction, output.logits.argmax(1))
    chosen = output.probs.gather(1, prediction[:, None]).squeeze(1)
    admit, lower = output.admit, output.admit_lower
    # the lower bound never admits more, and both something
    assert not (lower & ~admit).any()
    assert 0 < lower.sum() < admit.sum() < len(labels)
    assert (output.rescaled_similarity[admit] >= found.min_similarity).all()
    assert (chosen[admit] >= found.thresholds[prediction[admit]]).all()
    assert (found.thresholds >= found.config.alpha).all()
    for label in range(3):
        right = prediction == labels
        assert right[admit & (labels == label)].float().mean() > 0.95
        assert right[admit & (prediction == label)].float().mean() > 0.95
    assert not (output.is_ood & admit).any()
    assert torch.equal(admit, torch.tensor([reason == "admitted" for reason in output.reason]))
    assert set(output.reason) >= {"admitted", "low_similarity", "out_of_distribution"}
    assert (output.similarity == 0)[output.is_ood].all() or estimator == "universal"
    assert (output.d_lower <= output.distance).all()
    assert (output.distance <= output.d_upper).all()


@both
def test_rows_from_elsewhere_are_refused(estimator):
    features, _ = rows(500, seed=8)
    output = fitted(estimator)(features + 1000 * torch.randn(500, 1).sign())
    # farther away than every calibration row: no class is preferred
    assert not output.admit.any()
    assert not output.distance.any()
    if estimator == "sdm_hr":
        torch.testing.assert_close(output.probs, torch.full((500, 3), 1 / 3))


@pytest.mark.parametrize("estimator", ["sdm_hr", "universal", "faiss"])
def test_a_row_too_large_to_be_compared_is_refused(estimator):
    if estimator == "faiss":
        pytest.importorskip("faiss")
    features = torch.cat([3e38 * torch.eye(10), -3e38 * torch.eye(10), rows(4, seed=8)[0]])
    output = (head(index="faiss") if estimator == "faiss" else fitted(estimator))(features)
    assert not output.admit[:20].any()
    assert output.is_ood[:20].all()
    assert output.distance_raw[:20].isinf().all()
    assert not output.similarity[:20].any()
    assert output.similarity[20:].any()
    assert output.probs.isfinite().all()


@both
def test_a_row_does_not_depend_on_the_others(estimator):
    found = fitted(estimator)
    features, _ = rows(40, seed=9)
    output = found(features)
    for row in range(40):
        single = found(features[row : row + 1])
        assert single.reason == output.reason[row : row + 1]
        assert single.nearest_id == output.nearest_id[row : row + 1]
        for name, value in rows_of(output, slice(row, row + 1)).items():
            torch.testing.assert_close(single[name], value, atol=1e-5, rtol=1e-5)


@both
def test_rows_that_are_not_finite_are_refused_alone(estimator):
    found = fitted(estimator)
    features, _ = rows(30, seed=10)
    clean = found(features)
    features[3, 1], features[11, 0], features[12, 5] = torch.nan, torch.inf, -torch.inf
    output = found(features)
    spoilt = torch.zeros(30, dtype=torch.bool)
    spoilt[[3, 11, 12]] = True
    for row in (3, 11, 12):
        assert output.reason[row] == "non_finite"
        assert output.nearest_id[row] is None
    assert not output.admit[spoilt].any()
    assert not output.admit_lower[spoilt].any()
    assert output.logits[spoilt].isnan().all()
    assert output.prediction[spoilt].tolist() == [-1] * 3
    for name, value in rows_of(output, ~spoilt).items():
        assert torch.equal(value, rows_of(clean, ~spoilt)[name]), name
    neighbours = found.neighbours(output)
    assert [bool(row) for row in neighbours] == (~spoilt).tolist()


@both
def test_no_rows_give_an_empty_output(estimator):
    output = fitted(estimator)(torch.zeros(0, 10))
    assert output.probs.shape == output.probs_lower.shape == (0, 3)
    assert output.admit.shape == output.prediction.shape == (0,)
    assert output.exemplars.shape == (0, 8)
    assert output.reason == output.nearest_id == fitted(estimator).neighbours(output) == []


@both
def test_neither_autocast_nor_a_cast_touches_precision(estimator):
    found = fitted(estimator)
    features, _ = rows(50, seed=14)
    plain = found(features)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = found(features)
    cast = copy.deepcopy(found).to(torch.bfloat16).half().double()(features)
    for name, value in rows_of(plain, slice(None)).items():
        assert torch.equal(automatic[name], value), name
        assert torch.equal(cast[name], value), name


def test_features_of_another_shape_or_kind_are_refused():
    for wrong, error in (
        (torch.zeros(2, 9), ValueError),
        (torch.zeros(10), ValueError),
        (torch.zeros(2, 10).long(), TypeError),
        ([[0.0] * 10], TypeError),
    ):
        with pytest.raises(error, match="features"):
            fitted("sdm_hr")(wrong)
    with pytest.raises(ValueError, match="num_features and num_labels are missing"):
        SdmHead(SdmConfig())
    with pytest.raises(ValueError, match="load it with from_pretrained"):
        fitted("sdm_hr").load_state_dict(head(seed=3).state_dict())


def test_scale_of_the_vectors_does_not_matter():
    found = head()
    features, _ = rows(100, seed=11)
    before = found(features)
    # vectors twice as long, logits as before
    found.adaptor.exemplar.weight *= 2
    found.adaptor.exemplar.bias *= 2
    found.adaptor.classifier.weight /= 2
    state = {"support_exemplars": found.support_exemplars * 2}
    state["calibration_squared_distance"] = found.calibration_squared_distance * 4
    found.fill(state)
    after = found(features)
    for name in ("similarity", "distance", "probs", "admit", "admit_lower", "d_lower"):
        assert torch.equal(after[name], before[name]), name


def test_neighbours_are_the_nearest_training_rows():
    features, labels = rows(400)
    texts = [f"row {row}" for row in range(400)]
    found = head(
        ids=[f"id{row}" for row in range(400)], texts=texts, id2label={0: "none", 2: "two"}
    )
    output = found(features[:20] + 0.01)
    distances = torch.cdist(output.exemplars, found.support_exemplars).square()
    for row, listed in enumerate(found.neighbours(output, 4)):
        assert listed[0]["id"] == output.nearest_id[row]
        assert listed[0]["squared_distance"] == pytest.approx(float(output.nearest_distance[row]))
        expected = distances[row].sort().values[:4]
        assert [one["squared_distance"] for one in listed] == pytest.approx(
            expected.tolist(), abs=1e-4
        )
        for one in listed:
            number = int(one["id"].removeprefix("id"))
            assert one["text"] == texts[number]
            assert one["label"] == {0: "none", 1: "1", 2: "two"}[int(labels[number])]
    assert len(found.neighbours(output, 10_000)[0]) == 200
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match=f"count={wrong} must be"):
            found.neighbours(output, wrong)
    with pytest.raises(ValueError, match="output has no exemplars"):
        found.neighbours(SdmOutput(prediction=output.prediction))


def test_more_support_changes_evidence_and_not_predictions():
    found, (features, labels) = head(), rows(60, seed=12)
    before = found(features)
    unsure = (before.similarity == 0).nonzero().squeeze(1)
    assert len(unsure)
    found.add_support(features, before.prediction, texts=["new"] * 60)
    after = found(features)
    assert torch.equal(after.logits, before.logits)
    # each row is its own neighbour now, and was labelled as it is predicted
    assert not after.distance_raw.any()
    assert (after.distance == 1).all()
    assert (after.similarity >= 1).all()
    assert after.nearest_id == [f"added-{200 + row}" for row in range(60)]
    assert found.neighbours(after)[0][0]["text"] == "new"
    # rows without a class mark their neighbourhood
    other = head()
    other.add_support(features + 1e-4, torch.full((60,), -1))
    marked = other(features)
    assert not marked.similarity.any()
    assert set(marked.reason) == {"out_of_distribution"}
    assert other.neighbours(marked)[0][0]["label"] is None
    for wrong in ({"ids": ["a"]}, {"ids": ["a"] * 60}, {"texts": ["a"]}):
        with pytest.raises(ValueError, match=r"ids|texts"):
            other.add_support(features, labels, **wrong)
    taken = other.support_ids[5]
    with pytest.raises(ValueError, match=f"that are new, '{taken}' is not"):
        other.add_support(features[:1], labels[:1], ids=[taken])
    with pytest.raises(ValueError, match="NaN"):
        other.add_support(features * torch.nan, labels)
    with pytest.raises(ValueError, match="too large to be compared"):
        other.add_support(features * 1e30, labels)
    assert len(other.support_labels) == len(other.support_ids) == 260
    # the same row again would count twice, whatever the batch that it is computed in
    right = (before.prediction == labels).nonzero().squeeze(1)[:7]
    again = head()
    again.add_support(features, labels)
    with pytest.warns(UserWarning, match="7 of 7 rows are in the support twice now") as told:
        again.add_support(features[right], labels[right])
    assert told[0].filename == __file__
    # one that is marked as out of distribution does not count
    again.add_support(features[right], torch.full((7,), -1))


@may_be_empty
@both
def test_another_accuracy_needs_no_training(estimator):
    # a fit at that accuracy from the start gives the same
    settings = RESCALING if estimator == "universal" else {}
    changed, fresh = head(**settings), head(**settings, alpha=0.8)
    changed.recalibrate(0.8)
    for name, value in fresh.state_dict().items():
        assert equal(changed.state_dict()[name], value), name
    assert changed.config == fresh.config
    levels = [float(changed.recalibrate(alpha).min_similarity) for alpha in (0.6, 0.8, 0.9, 0.97)]
    assert levels == sorted(levels)
    with pytest.raises(ValueError, match=r"above 0\.5"):
        changed.recalibrate(0.4)


def test_other_calibration_rows_take_the_place_of_the_old():
    found, (features, labels) = head(), rows(900, seed=13)
    before = found.region
    region = found.recalibrate(features=features, labels=labels)
    assert len(found.calibration_labels) == 900
    assert not torch.equal(region.thresholds, before.thresholds)
    # what a calibration row is told now is what the region was found on
    output = found(features)
    assert torch.equal(output.probs, found.calibration_probs)
    assert torch.equal(output.similarity, found.calibration_similarity)
    with pytest.raises(ValueError, match="no row has label 2"):
        found.recalibrate(features=features[labels < 2], labels=labels[labels < 2])
    with pytest.raises(ValueError, match="fit it again"):
        head(**RESCALING).recalibrate(features=features, labels=labels)
    for alone in ({"features": features}, {"labels": labels}):
        with pytest.raises(ValueError, match="belong together"):
            found.recalibrate(**alone)
    used = [int(one) for one in found.support_ids]
    everything, known = rows(400)
    with pytest.warns(UserWarning, match="200 of 200 calibration rows are support rows too"):
        found.recalibrate(features=everything[used], labels=known[used])
    # of another batch, which rounds otherwise
    with pytest.warns(UserWarning, match="200 of 400 calibration rows are support rows too"):
        found.recalibrate(features=everything, labels=known)


def test_a_class_that_cannot_be_told_is_why_nothing_is_admitted():
    features, labels = rows(400)
    # classes 1 and 2 are one cloud
    blurred = torch.where((labels == 2)[:, None], rows(400, labels=2)[0] * 0 + 3, features)
    blurred = torch.where((labels > 0)[:, None], torch.randn(400, 10) + 3, blurred)
    settings = {"epochs": 5, "num_splits": 1, "exemplar_dim": 8, "learning_rate": 1e-2}
    settings |= {"progress": False, "id2label": {0: "far", 1: "one", 2: "other"}}
    with pytest.warns(EmptyRegionWarning, match="Nothing is admitted: .*(one|other) rea") as told:
        found = SdmHead.fit_features(blurred, labels, **settings)
    assert "far reaches" not in str(told[0].message)
    # at the line of the user, and as it is where rows or alpha change
    assert told[0].filename == __file__
    highest = highest_alpha(found)
    wanted = "No alpha above 0.5" if highest is None else f"has a region is {highest:.3f}"
    assert wanted in str(told[0].message)
    for given in ({"alpha": 0.99}, {"features": blurred[:300] + 0.01, "labels": labels[:300]}):
        with pytest.warns(EmptyRegionWarning, match="Nothing is admitted") as told:
            found.recalibrate(**given)
        assert told[0].filename == __file__
    assert found.min_similarity.isinf()
    assert found.report["splits"][0]["min_similarity"] is None
    output = found(features)
    assert set(output.reason) == {"nothing_admitted"}
    _, thresholds = found.threshold_curve()
    assert (thresholds[:, 0] >= 0.95).any()
    assert (thresholds[:, 1:].amin(1) < 0.95).all()
