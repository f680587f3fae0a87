"""The naive Bayes probe: the authors' numbers, its definition, and what it becomes in a model."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hf_softext.heads.naive_bayes import NaiveBayesProbe
from tests.heads.test_mahalanobis import draw
from tests.heads.test_mahalanobis_models import texts
from tests.heads.tiny import build, tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "naive_bayes_gaussnb.safetensors"


def posterior(features, labels, rows):
    """The density of every class, normalised by Bayes' rule."""
    features, rows = features.double(), rows.double()
    parts = [features[labels == one] for one in range(int(labels.max()) + 1)]
    prior = [len(part) / len(features) for part in parts]
    spread = [part.var(0, correction=0) + 1e-9 for part in parts]
    shared = sum(p * s for p, s in zip(prior, spread, strict=True))
    density = torch.stack(
        [
            p * torch.distributions.Normal(part.mean(0), shared.sqrt()).log_prob(rows).sum(1).exp()
            for p, part in zip(prior, parts, strict=True)
        ],
        1,
    )
    return density / density.sum(1, keepdim=True)


def test_golden_vectors():
    golden = load_file(GOLDEN)
    probe = NaiveBayesProbe().fit_features(golden["x"], golden["y"])
    moments = probe.moments
    torch.testing.assert_close(moments.mean, golden["mu"])
    torch.testing.assert_close(moments.count / 60, golden["prior"])
    by_class = moments.spread / moments.count[:, None] + 1e-9
    torch.testing.assert_close(by_class, golden["var_per_class"])
    torch.testing.assert_close(probe.variance(), golden["var_shared"])
    torch.testing.assert_close(probe.log_likelihood(golden["x_test"]), golden["log_lik"])
    assert torch.equal(probe(golden["x_test"]).argmax(-1), golden["pred"])
    expected = (golden["log_lik"] + golden["prior"].log()).softmax(-1)
    torch.testing.assert_close(probe(golden["x_test"]).softmax(-1), expected)
    torch.testing.assert_close(
        probe.to_linear(torch.float64)(golden["x_test"]).softmax(-1), expected
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_posterior_is_bayes_rule(dtype):
    features, labels = draw(rows=61)
    features, rows = features.to(dtype), draw(rows=17, seed=1)[0].to(dtype)
    labels[40:] = labels[40:].clamp(min=1)
    probe = NaiveBayesProbe().fit_features(features, labels)
    torch.testing.assert_close(probe(rows).softmax(-1), posterior(features, labels, rows))
    # far from 0, in float32: the layer's weights are taken from the middle of the classes
    far = NaiveBayesProbe().fit_features(features.double() + 1000, labels).to_linear()
    found = far((rows.double() + 1000).float()).softmax(-1).double()
    torch.testing.assert_close(found, probe(rows).softmax(-1), rtol=0.05, atol=2e-3)


def test_it_is_linear_discriminant_analysis_without_correlations():
    features, labels = draw(rows=90)
    labels[70:] = 0
    rows = draw(rows=200, seed=1)[0]
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), labels.numpy())
    variance = theirs.covariance_.diagonal()
    weight = torch.tensor(theirs.means_ / variance).double()
    bias = torch.tensor(theirs.priors_).log().double()
    bias = bias - 0.5 * torch.tensor(theirs.means_**2 / variance).sum(1)
    expected = (rows.double() @ weight.T + bias).log_softmax(-1)
    found = NaiveBayesProbe().fit_features(features, labels)(rows).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parts_copies_and_order_change_nothing():
    features, labels = draw(rows=101)
    whole = NaiveBayesProbe().fit_features(features, labels)
    parts = NaiveBayesProbe()
    # the first part has one class alone
    order = labels.argsort()
    for rows, numbers in zip(features[order].split(20), labels[order].split(20), strict=True):
        parts.partial_fit(rows, numbers, 3)
    twice = NaiveBayesProbe().fit_features(torch.cat([features] * 2), torch.cat([labels] * 2))
    for other in (parts, twice):
        for one, expected in zip(other.linear(), whole.linear(), strict=True):
            torch.testing.assert_close(one, expected)


def test_equal_priors_and_variances_are_the_nearest_centroid():
    means = torch.randn(4, 5, dtype=torch.float64) * 3
    features = (means[:, None] + torch.cat([torch.eye(5), -torch.eye(5)])).flatten(0, 1)
    probe = NaiveBayesProbe().fit_features(features, torch.arange(4).repeat_interleave(10))
    rows = torch.randn(30, 5, dtype=torch.float64) * 3
    expected = (rows[:, None] - means).square().sum(-1).argmin(-1)
    assert torch.equal(probe(rows).argmax(-1), expected)
    single = NaiveBayesProbe().fit_features(features, torch.zeros(40, dtype=torch.int64))
    assert torch.equal(single(rows).softmax(-1), torch.ones(30, 1, dtype=torch.float64))


def test_features_that_do_not_vary():
    features, labels = draw(rows=60)
    features[:, 2] = 7.0
    with pytest.warns(UserWarning, match=r"1 of 6 features .*1e-06 of the mean") as told:
        probe = NaiveBayesProbe().fit_features(features, labels)
    others = [0, 1, 3, 4, 5]
    plain = NaiveBayesProbe().fit_features(features[:, others], labels)
    # at the line of the user, and once
    assert [one.filename for one in told] == [__file__]
    found = probe(features).softmax(-1)
    torch.testing.assert_close(found, plain(features[:, others]).softmax(-1))
    # one row of one class: the others give the variance
    alone = torch.cat([torch.zeros(20, dtype=torch.int64), torch.ones(1, dtype=torch.int64)])
    NaiveBayesProbe().fit_features(features[:21, others], alone)
    with pytest.warns(UserWarning, match="the nearest class mean is predicted"):
        shots = NaiveBayesProbe().fit_features(features[:3], torch.arange(3))
    assert torch.equal(shots(features[:3] + 0.01).argmax(-1), torch.arange(3))


def test_behind_a_model(tmp_path):
    model, words = build("llama"), tokenizer()
    low, high = texts(40, 0, 0, 6), texts(40, 1, 30, 36)
    table = Dataset.from_dict({"text": low + high, "label": [0] * 40 + [1] * 40})
    probe = NaiveBayesProbe().fit(model, words, table, progress=False)
    assert probe.pooling == "last_mean"
    fresh = texts(20, 2, 0, 6) + texts(20, 3, 30, 36)
    batch = words(fresh, padding=True, return_tensors="pt")
    logits = probe.classify(model, batch)
    assert (logits.argmax(-1) == torch.tensor([0] * 20 + [1] * 20)).float().mean() > 0.9

    probe.save_pretrained(tmp_path)
    loaded = NaiveBayesProbe.from_pretrained(tmp_path)
    assert torch.equal(loaded.classify(model, batch), logits)
    # it goes on learning where it was
    rows = torch.randn(5, 48)
    more = [one.partial_fit(rows, [1] * 5).linear()[0] for one in (loaded, probe)]
    assert torch.equal(*more)
    with pytest.raises(ValueError, match="fitted on a model, and the model given has another"):
        loaded.classify(build("bert"), batch)
    # what was found out for one model does not hold for the next
    assert probe.fit(build("bert"), words, table, progress=False).pooling == "cls_mean"
    config = tmp_path / "naive_bayes_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"floor": True}))
    with pytest.raises(ValueError, match="floor=True, of a kind"):
        NaiveBayesProbe.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: NaiveBayesProbe(epsilon=0), "epsilon=0 must be above 0"),
        (lambda x, y: NaiveBayesProbe(floor=1), "floor=1 must be at least 0 and below 1"),
        (lambda x, y: NaiveBayesProbe(pooling="max"), "pooling='max' must be"),
        (lambda x, y: NaiveBayesProbe()(x), "has not seen any rows"),
        (lambda x, y: NaiveBayesProbe().save_pretrained("nowhere"), "has not seen any rows"),
        (lambda x, y: NaiveBayesProbe().fit_features(x, y, 4), "class 3 of 4 has no row"),
        (lambda x, y: NaiveBayesProbe().partial_fit(x, y << 40), "class 1 has no row"),
        (lambda x, y: NaiveBayesProbe().fit_features(x, y, 2), "labels has 2, and there are 2"),
        (
            lambda x, y: NaiveBayesProbe().partial_fit(x, y).partial_fit(x, y + 1),
            "labels has 3, and there are 3 classes",
        ),
        (
            lambda x, y: NaiveBayesProbe().partial_fit(x, y).partial_fit(x[:, 1:], y),
            "there were 6 columns before",
        ),
        (
            lambda x, y: NaiveBayesProbe().partial_fit(x, y).partial_fit(x, y, 5),
            "num_classes=5: there were 3",
        ),
        (lambda x, y: NaiveBayesProbe().fit_features(x * torch.nan, y), "holds inf or NaN in rows"),
        (lambda x, y: NaiveBayesProbe().fit_features(x[:0], y[:0]), "and not empty"),
        (
            lambda x, y: NaiveBayesProbe().fit_features(x, y).classify(build("bert"), {}),
            "not fitted behind a model",
        ),
    ],
)
def test_mistakes_are_named(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call(*draw())
