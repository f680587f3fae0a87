"""Fitting: splits, equal rows, what is refused, and going on after a kill."""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from hf_softext.heads.sdm import SdmConfig, SdmHead, fit
from hf_softext.heads.sdm.split import distinct_rows, halves
from hf_softext.heads.sdm.training import SplitTraining
from tests.heads.sdm.cases import QUICK, head, may_be_empty, rows, same


def test_halves_share_every_class():
    labels = torch.tensor([0] * 7 + [1] * 4 + [2] * 3 + [3] * 2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        support, calibration = halves(labels, 4, True, draw)
        assert sorted(support.tolist() + calibration.tolist()) == list(range(16))
        assert len(support) == len(calibration)
        counts = [torch.bincount(labels[part], minlength=4) for part in (support, calibration)]
        assert (counts[0] - counts[1]).abs().max() <= 1
    # as the authors do it
    support, calibration = halves(torch.zeros(9).long(), 1, False, draw)
    assert (len(support), len(calibration)) == (4, 5)
    with pytest.raises(ValueError, match=r"has no row of classes 1.*stratify=True"):
        halves(torch.tensor([0] * 30 + [1]), 2, False, draw)


def test_equal_rows_are_found():
    features = torch.tensor([[1.0, 2], [3, 4], [1, 2], [0.0, 1], [-0.0, 1], [1, 2]])
    kept, doubles, other = distinct_rows(features, torch.tensor([0, 1, 0, 1, 1, 1]))
    assert (kept.tolist(), doubles, other) == ([0, 1, 3], 3, 1)


def test_equal_rows_are_used_once_and_said():
    features, labels = rows(300)
    with pytest.warns(UserWarning, match=r"300 of 600 rows .*\(0 with another label\)"):
        twice = SdmHead.fit_features(features.repeat(2, 1), labels.repeat(2), **QUICK)
    once = SdmHead.fit_features(features, labels, **QUICK)
    assert twice.report["rows"] == 600
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])


def test_the_best_split_is_kept():
    found = head(num_splits=3)
    splits = found.report["splits"]
    losses = [split["loss"] for split in splits]
    assert found.report["best_split"] == losses.index(min(losses))
    for split in splits:
        history = [epoch["calibration_loss"] for epoch in split["history"]]
        assert split["loss"] == min(history)
        assert split["epoch"] == max(n for n, one in enumerate(history, 1) if one == min(history))
    assert splits[found.report["best_split"]]["min_similarity"] == float(found.min_similarity)
    # half of the rows, each with its id
    assert len(found.support_ids) == len(set(found.support_ids)) == 200
    features, labels = rows(400)
    chosen = [int(one) for one in found.support_ids]
    assert torch.equal(labels[chosen], found.support_labels)
    exemplars, _ = found.adaptor(found.adaptor.standardize(features[chosen]))
    assert torch.equal(exemplars, found.support_exemplars)


def test_the_same_seed_is_the_same_head_and_another_is_not():
    assert same(head(), head())
    assert not torch.equal(head().min_similarity, head(seed=5).min_similarity)


@may_be_empty
def test_training_does_not_stand_still_where_a_class_is_never_right_at_first(monkeypatch):
    features, labels = rows(300, labels=6, width=6)

    def losses():
        settings = QUICK | {"epochs": 60, "num_splits": 1, "learning_rate": 1e-3, "seed": 5}
        found = SdmHead.fit_features(features, labels, **settings)
        history = found.report["splits"][0]["history"]
        return history[0]["train_loss"], history[-1]["train_loss"]

    first, last = losses()
    assert last < 0.9 * first
    # as published: d is 0 for every row, and with it the gradient
    monkeypatch.setattr(SplitTraining, "_start_over", _as_published)
    stuck_first, stuck_last = losses()
    assert stuck_first == first
    assert stuck_last > 0.99 * first


def _as_published(training):
    if training.epoch > 0:
        training.similarity = training.train.evidence.similarity
        training.distance = training.train.distance
    else:
        training.similarity = torch.full_like(training.train.features[:, 0], math.e - 2)
        training.distance = torch.ones_like(training.similarity)


def test_refreshing_less_often_looks_less_often():
    found = head(refresh_every=4, num_splits=1)
    assert [one["epoch"] for one in found.report["splits"][0]["history"]] == [4, 8, 12, 15]


@may_be_empty
@pytest.mark.parametrize("estimator", ["sdm_hr", "universal"])
def test_a_killed_fit_goes_on_bit_by_bit(tmp_path, monkeypatch, estimator):
    settings = {"estimator": estimator, "rescaler_epochs": 3, "rescaler_batch_size": 20}
    whole = head(**settings)
    monkeypatch.setattr(fit, "_SAVE_SECONDS", 0.0)
    plain, trained = SplitTraining._train_epoch, []

    def dies(training):
        # in the middle of the first split, and of the second
        if len(trained) in (9, 22):
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(training.epoch)
        return plain(training)

    monkeypatch.setattr(SplitTraining, "_train_epoch", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            head(**settings, work_dir=tmp_path / "work")
    assert same(whole, head(**settings, work_dir=tmp_path / "work"))
    # no epoch was trained twice
    assert [one for one in trained if one != "killed"] == [*range(15), *range(15)]
    # and a fit that is over trains nothing
    count = len(trained)
    assert same(whole, head(**settings, work_dir=tmp_path / "work"))
    assert len(trained) == count
    with pytest.raises(ValueError, match="unfinished run with another config"):
        head(**settings, work_dir=tmp_path / "work", seed=1)


def test_a_damaged_file_is_made_again(tmp_path):
    whole = head(work_dir=tmp_path)
    (tmp_path / "split-001.safetensors").write_bytes(b"\x00" * 40)
    assert same(whole, head(work_dir=tmp_path))


def test_what_cannot_be_fitted_is_refused():
    features, labels = rows(60)

    def refused(match, features=features, labels=labels, error=ValueError, **settings):
        with pytest.raises(error, match=match):
            SdmHead.fit_features(features, labels, **QUICK | settings)

    spoilt = features.clone()
    spoilt[7, 3] = torch.nan
    spoilt[9, 0] = torch.inf
    refused(r"features of rows 7, 9 \(2 in all\) hold NaN", spoilt)
    refused("one class", labels=torch.zeros(60).long())
    refused(r"no row has label 1 \(1 of 3", labels=torch.where(labels == 1, 0, labels))
    refused("class 2 has a single", features[:5], torch.tensor([0, 0, 1, 1, 2]))
    refused("no row has label 3, 4", features, labels, num_labels=5)
    refused("label -1 is outside", labels=labels - 1)
    refused(r"labels of shape \(59,\)", labels=labels[:-1])
    refused(r"labels are torch.float32", labels=labels.float(), error=TypeError)
    refused("labels are no whole numbers", labels=["a"] * 60, error=TypeError)
    refused(r"features of shape \(60,\)", features[:, 0])
    refused("features are torch.int64", features.long(), error=TypeError)
    refused("ids and texts", ids=["a"] * 60)
    refused("'epoch' is neither an argument", epoch=3, error=TypeError)
    refused("not finite after epoch", features * 1e30, learning_rate=1e30)
    for alpha in (0.5, 1.01, 0.05, float("nan")):
        refused("above 0.5 and at most 1", alpha=alpha)
    refused("index='annoy' must be one of torch, faiss", index="annoy")
    refused("epochs=0 must be a whole number", epochs=0)
    refused("alpha='0.9' must be above", alpha="0.9")
    refused("learning_rate=nan must be above 0", learning_rate=float("nan"))
    refused("seed=0.5 must be a whole number", seed=0.5)
    refused("stratify='no' must be True or False", stratify="no")
    refused(r"layers=\(0.5,\) must be whole numbers", layers=(0.5,))
    refused("layers=-1 must be whole numbers", layers=-1)
    refused("pooling='max' must be one of", pooling="max")
    refused(r"id2label=\['a'\] must be a mapping", id2label=["a"])
    refused("backbone='b' must be a mapping", backbone="b")
    refused("labels are torch.complex64", labels=labels.to(torch.complex64), error=TypeError)
    # no memory for so many classes
    refused("label 2, 3, 4, 5, 6 .1099511627774 of", labels=torch.where(labels == 2, 2**40, labels))


def test_settings_survive_json():
    config = SdmConfig(num_features=3, id2label={0: "no", 1: "yes"}, layers=(-1, 2), alpha=0.7)
    assert SdmConfig.from_dict(config.to_dict()) == config
    numpy = SdmConfig(alpha=np.float32(0.75), seed=np.int64(3), epochs=np.int64(2))
    assert SdmConfig.from_dict(json.loads(json.dumps(numpy.to_dict()))) == numpy
    with pytest.raises(ValueError, match="format=2"):
        SdmConfig.from_dict(config.to_dict() | {"format": 2})
    with pytest.raises(ValueError, match="trust: an SDM head has no such setting"):
        SdmConfig.from_dict(config.to_dict() | {"trust": True})


def test_half_precision_features_are_computed_in_float32():
    features, labels = rows(300)
    half = features.bfloat16()
    assert same(
        SdmHead.fit_features(half, labels, **QUICK),
        SdmHead.fit_features(half.float(), labels, **QUICK),
    )


def test_the_faiss_index_gives_the_same():
    pytest.importorskip("faiss")
    plain, other = head(), head(index="faiss")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    features, _ = rows(200, seed=3)
    for max_q in (1, 70, 2048):
        plain.config, other.config = (
            SdmConfig(**{**vars(one.config), "max_q": max_q}) for one in (plain, other)
        )
        first, second = plain(features), other(features)
        assert torch.equal(first.similarity, second.similarity)
        assert torch.equal(first.nearest, second.nearest)
        assert torch.equal(first.distance_raw, second.distance_raw)
        assert first.similarity.max() == min(max_q, float(first.similarity.max()))


def test_no_warning_without_equal_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head()
