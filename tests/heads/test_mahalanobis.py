"""The Mahalanobis detector: against the authors' arithmetic, its definition, and real models."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hf_softext.functional.class_moments import class_moments
from hf_softext.functional.tied_gaussian import raise_score
from hf_softext.heads.mahalanobis import MahalanobisDetector
from hf_softext.heads.mahalanobis_ensemble import layer_weights, threshold
from tests.heads.tiny import build, tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "mahalanobis_small.safetensors"


class OneToken(nn.Module):
    """A backbone of one layer, tanh(W e + b), for inputs of one token."""

    def __init__(self, weight, bias):
        super().__init__()
        self.config = hf.PretrainedConfig(hidden_size=len(bias))
        self.layer = nn.Linear(*weight.T.shape)
        self.layer.weight.data, self.layer.bias.data = weight, bias

    def forward(self, inputs_embeds, output_hidden_states=False, return_dict=True):
        return BaseModelOutput(last_hidden_state=self.layer(inputs_embeds).tanh())


def draw(rows=120, size=6, classes=3, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = 2 * torch.randn(classes, size, generator=generator)
    mix = torch.randn(size, size, generator=generator)
    noise = torch.randn(rows, size, generator=generator) @ mix
    return centres[labels] + spread * noise, labels


def by_definition(detector, features, labels, rows, ridge=0.0):
    """Scores from a dense inverse, row by row and class by class."""
    features, rows = features.double().numpy(), rows.double().numpy()
    means = np.stack([features[labels == c].mean(0) for c in range(int(labels.max()) + 1)])
    rest = features - means[labels]
    covariance = rest.T @ rest / len(rest)
    covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.pinv(covariance, hermitian=True)
    return [[-0.5 * (x - m) @ inverse @ (x - m) for m in means] for x in rows]


def test_golden_vectors():
    golden = load_file(GOLDEN)
    model = OneToken(golden["w"], golden["b"])
    features = model(golden["x"]).last_hidden_state.detach()
    detector = MahalanobisDetector(shrinkage=0.0).fit_features(features, golden["y"])
    (gaussian,) = detector.gaussians.each
    torch.testing.assert_close(gaussian.means.float(), golden["mu"])
    precision = (gaussian.white @ gaussian.white.T).float()
    torch.testing.assert_close(precision, golden["precision"], rtol=1e-5, atol=1e-5)

    queries = golden["xq"].clone().requires_grad_()
    scores = detector.class_scores(model(queries).last_hidden_state)[:, 0]
    torch.testing.assert_close(scores.float(), golden["score"], rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(scores.amax(-1).sum(), queries)
    moved = raise_score(queries.detach(), gradient, 1.0)
    torch.testing.assert_close(moved, queries.detach() - golden["grad_sign"])

    for epsilon, expected in zip(golden["magnitudes"], golden["score_by_magnitude"], strict=True):
        detector.epsilon = float(epsilon)
        found = detector.score(model, {"inputs_embeds": golden["xq"][:, None]})
        torch.testing.assert_close(found[:, 0].float(), expected, rtol=1e-5, atol=1e-5)


def test_scores_are_the_definition():
    features, labels = draw()
    rows, _ = draw(rows=17, seed=1)
    for ridge in (0.0, 0.3):
        detector = MahalanobisDetector(shrinkage=ridge).fit_features(features, labels)
        expected = torch.tensor(by_definition(detector, features, labels, rows, ridge))
        torch.testing.assert_close(detector.class_scores(rows)[:, 0], expected)
        torch.testing.assert_close(detector.score_features(rows)[:, 0], expected.amax(-1))
    assert (detector.score_features(rows) <= 0).all()
    # bfloat16 features are what they are, and the arithmetic is not bfloat16's
    half = rows.bfloat16()
    torch.testing.assert_close(detector.score_features(half), detector.score_features(half.float()))
    # a class mean is at no distance from itself, to the last bit
    means = class_moments(features, labels, 3).mean
    assert torch.equal(detector.score_features(means), torch.zeros(3, 1, dtype=torch.float64))
    assert detector.score_features(rows[:0]).shape == (0, 1)
    single = MahalanobisDetector().fit_features(features, torch.zeros(120, dtype=torch.int64))
    assert single.class_scores(rows).shape == (17, 1, 1)


def test_scores_survive_any_invertible_map_of_the_features():
    features, labels = draw()
    rows, _ = draw(rows=9, seed=1)
    mix, shift = torch.randn(6, 6, dtype=torch.float64), 100.0
    plain = MahalanobisDetector(shrinkage=0.0).fit_features(features, labels)
    mapped = MahalanobisDetector(shrinkage=0.0).fit_features(
        features.double() @ mix + shift, labels
    )
    torch.testing.assert_close(
        mapped.score_features(rows.double() @ mix + shift), plain.score_features(rows)
    )


def test_with_unit_covariance_it_is_the_nearest_centroid():
    means = torch.randn(4, 5, dtype=torch.float64) * 3
    # for each class and axis one step to either side: covariance I / 5
    steps = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    features = (means[:, None] + steps).flatten(0, 1)
    labels = torch.arange(4).repeat_interleave(10)
    detector = MahalanobisDetector(shrinkage=0.0).fit_features(features, labels)
    rows = torch.randn(30, 5, dtype=torch.float64) * 3
    gaps = (rows[:, None] - means).square().sum(-1)
    torch.testing.assert_close(detector.class_scores(rows)[:, 0], -2.5 * gaps)
    assert torch.equal(detector.predict_features(rows), gaps.argmin(-1))


def test_more_dimensions_than_rows():
    features, labels = draw(rows=9, size=20)
    rows, _ = draw(rows=5, size=20, seed=1)
    pseudo = MahalanobisDetector(shrinkage=0.0).fit_features(features, labels)
    assert pseudo.gaussians.each[0].white.shape == (20, 6)
    expected = torch.tensor(by_definition(pseudo, features, labels, rows))
    torch.testing.assert_close(pseudo.class_scores(rows)[:, 0], expected)
    shrunk = MahalanobisDetector().fit_features(features, labels)
    assert shrunk.gaussians.each[0].white.shape == (20, 20)
    # what the pseudo-inverse cannot see
    unseen = torch.linalg.svd(features.double() - pseudo.gaussians.each[0].means[labels])[2][-1]
    away = features[:1].double() + 50 * unseen
    near = features[:1].double()
    torch.testing.assert_close(pseudo.score_features(away), pseudo.score_features(near))
    assert shrunk.score_features(away) < 100 * shrunk.score_features(near)


def test_ledoit_wolf_and_discriminant_analysis_of_scikit_learn():
    features, labels = draw(rows=40, size=12, spread=3.0)
    labels = labels.clamp(max=1)
    rows, _ = draw(rows=200, size=12, seed=1, spread=3.0)
    detector = MahalanobisDetector(shrinkage="ledoit_wolf").fit_features(features, labels)
    rest = features.double() - detector.gaussians.each[0].means[labels]
    covariance, share = ledoit_wolf(rest.numpy(), assume_centered=True)
    assert 0.05 < share < 0.95
    white = detector.gaussians.each[0].white
    torch.testing.assert_close(white @ white.T, torch.tensor(np.linalg.inv(covariance)))
    plain = MahalanobisDetector(shrinkage=0.0).fit_features(features, labels)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(
        features.double().numpy(), labels.numpy()
    )
    decision = torch.tensor(theirs.decision_function(rows.double().numpy()))
    assert torch.equal(plain.predict_features(rows), (decision > 0).long())
    equal = decision - float(np.log(theirs.priors_[1] / theirs.priors_[0]))
    assert torch.equal(plain.predict_features(rows, prior=False), (equal > 0).long())
    assert (plain.predict_features(rows) != plain.predict_features(rows, prior=False)).any()


def test_calibration():
    inside, outside = torch.randn(400, 2) * torch.tensor([1.0, 30.0]), torch.randn(300, 2) - 3
    detector = MahalanobisDetector(layers=(0, -1))
    detector.calibrate(inside, fpr=0.1)
    flagged = detector.is_ood(inside)
    assert int(flagged.sum()) == 39
    # each layer counts alike, whatever its scale
    spread = (detector.weights * inside.double()).std(0)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.5))
    assert detector.is_ood(torch.full((1, 2), torch.nan)).item()
    assert detector.is_ood(torch.tensor([[0.0, -torch.inf]])).item()
    assert not detector.is_ood(torch.zeros(1, 2)).item()

    detector.calibrate(inside, outside, fpr=0.05)
    rows = torch.cat([outside, inside]).double().numpy()
    middle, width = rows.mean(0), rows.std(0, ddof=1)
    theirs = LogisticRegression(tol=1e-9, max_iter=1000)
    theirs.fit((rows - middle) / width, [0] * 300 + [1] * 400)
    expected = theirs.decision_function((rows - middle) / width)
    found = detector.combine(torch.tensor(rows)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert detector.is_ood(outside).float().mean() > 0.8
    # a weight below 0 does not make infinitely far away near
    detector.calibrate(outside, inside)
    assert bool((detector.weights < 0).any())
    infinite = torch.tensor([[-torch.inf, 0.0], [0.0, -torch.inf], [-torch.inf, -torch.inf]])
    assert detector.is_ood(infinite).all()


def test_threshold_keeps_its_promise():
    # over draws of calibration rows and one new row, at most fpr are turned away
    scores = torch.randn(4000, 40)
    turned_away = [float(row[0] < threshold(row[1:], 0.1)) for row in scores]
    # the 4th lowest of 39: a chance of exactly 4 in 40
    assert abs(np.mean(turned_away) - 0.1) < 4 * (0.09 / 4000) ** 0.5
    assert threshold(torch.arange(19.0), 0.05) == 0.0
    with pytest.raises(ValueError, match=r"fpr=0.05 needs at least 19 rows, and there are 18"):
        threshold(torch.arange(18.0), 0.05)
    assert layer_weights(torch.zeros(1, 3))[0].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: MahalanobisDetector(pooling="max"), "pooling='max' must be"),
        (lambda x, y: MahalanobisDetector(layers=()), r"layers=\(\) must name"),
        (lambda x, y: MahalanobisDetector(shrinkage="oas"), "shrinkage='oas' must be"),
        (lambda x, y: MahalanobisDetector(shrinkage=-1.0), "shrinkage=-1.0 must be"),
        (lambda x, y: MahalanobisDetector(epsilon=-1.0), "epsilon=-1.0 must be"),
        (lambda x, y: MahalanobisDetector().score_features(x), "has not been fitted"),
        (lambda x, y: MahalanobisDetector().save_pretrained("nowhere"), "nothing to save"),
        (lambda x, y: MahalanobisDetector().is_ood(x), "has no threshold"),
        (lambda x, y: MahalanobisDetector().fit_features(x, y + (y > 0)), "class 1 has no row"),
        (lambda x, y: MahalanobisDetector().fit_features(x, y << 40), "class 1 has no row"),
        (lambda x, y: MahalanobisDetector().fit_features(x, y - 1), "labels has -1"),
        (lambda x, y: MahalanobisDetector().fit_features(x, y[1:]), "labels has 119 rows, and the"),
        (lambda x, y: MahalanobisDetector().fit_features(x, y / 2), r"must be \(N,\) whole"),
        (lambda x, y: MahalanobisDetector().fit_features(x, ["a"] * 120), "has the name 'a', whi"),
        (lambda x, y: MahalanobisDetector().fit_features(x[:3], y[:3]), "do not vary within any"),
        (
            lambda x, y: MahalanobisDetector().fit_features(x.index_fill(0, y[7:9], torch.inf), y),
            r"features of layer -1 holds inf or NaN in rows 1, 2 \(2 in all\)",
        ),
        (lambda x, y: MahalanobisDetector((0,) * 4).fit_features(x, y), "cannot be shared among 4"),
        (lambda x, y: MahalanobisDetector().fit_features([x, x], y), "list of 2 tensors: one for"),
        (lambda x, y: MahalanobisDetector().calibrate(x), "must have a column for each of the 1"),
        (lambda x, y: MahalanobisDetector().calibrate(x[:, :1], fpr=1.0), "fpr=1.0 must be above"),
        (
            lambda x, y: MahalanobisDetector().fit(build("bert"), tokenizer(), ["w1"], "label"),
            "labels='label' is not a column of the dataset, which has none",
        ),
    ],
)
def test_mistakes_are_named(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call(*draw())
