"""A probe as the last layer of a classifier, and which of two probes is better."""

import pytest
import torch
import transformers as hf
from sklearn.datasets import load_digits
from torch import nn

from hf_softext.heads.naive_bayes import NaiveBayesProbe
from hf_softext.heads.naive_bayes_classifier import (
    classifier_inputs,
    classifier_layer,
    write_classifier,
)
from hf_softext.heads.naive_bayes_compare import ProbeComparison, compare_probes, fit_probe
from tests.heads.test_mahalanobis import draw
from tests.heads.test_mahalanobis_models import texts
from tests.heads.tiny import build, tokenizer


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_written_classifier_is_the_probe(name, tmp_path):
    model, words = build(name).train(), tokenizer()
    train, labels = texts(40, 0, 0, 6) + texts(40, 1, 30, 36), [0] * 40 + [1] * 40
    features = classifier_inputs(model, words, train, batch_size=7, progress=False)
    assert model.training
    probe = NaiveBayesProbe().fit_features(features, labels)
    write_classifier(model, probe.to_linear())
    # the checkpoint is a plain one of transformers
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    fresh = texts(20, 2, 0, 6) + texts(20, 3, 30, 36)
    with torch.no_grad():
        logits = loaded(**words(fresh, padding=True, return_tensors="pt")).logits
    inputs = classifier_inputs(loaded, words, fresh, progress=False)
    torch.testing.assert_close(
        logits.softmax(-1).double(), probe(inputs).softmax(-1), rtol=1e-3, atol=1e-3
    )
    assert (logits.argmax(-1) == torch.tensor([0] * 20 + [1] * 20)).float().mean() > 0.9
    layer = classifier_layer(loaded)
    assert layer is (loaded.classifier if name == "bert" else loaded.classifier.out_proj)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier_layer(build("bert").bert), "BertModel has 0 linear layers of 2 out"),
        (lambda: classifier_layer(build("llama classifier")), "has no bias, without which"),
        (lambda: write_classifier(build("bert"), nn.Linear(9, 2)), "must have a bias and be of"),
        (lambda: write_classifier(build("bert").half(), huge()), r"to 1.0e\+06 do not fit into"),
    ],
)
def test_what_cannot_be_written(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def huge():
    layer = nn.Linear(24, 2)
    nn.init.constant_(layer.weight, 1e6)
    return layer


def test_comparison_finds_who_wins():
    digits = load_digits()
    pixels, labels = torch.tensor(digits.data), torch.tensor(digits.target)
    # independent features: naive Bayes knows the truth, the other has to find it
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(300) % 3
    centres = torch.randn(3, 60, generator=generator)
    rows = centres[kinds] + 4 * torch.randn(300, 60, generator=generator)
    found = compare_probes(rows, kinds, c=100.0)
    assert (found.winner, found.rows, found.classes, found.folds) == ("naive_bayes", 300, 3, 5)
    assert found.p_value < 0.01
    # correlated pixels, many rows
    with pytest.warns(UserWarning, match="hardly vary"):
        found = compare_probes(pixels, labels, folds=2)
    assert found.winner == "logistic"
    assert found.p_value < 1e-6
    gap = (found.only_logistic - found.only_naive_bayes) / found.rows
    assert found.naive_bayes_error - found.logistic_error == pytest.approx(gap)
    assert "logistic wins (p =" in str(found)
    assert "no winner (p = 1)" in str(ProbeComparison(20, 2, 5, 0.1, 0.15, 3, 2))
    # 5 of 5 heads, either way
    assert ProbeComparison(20, 2, 5, 0.1, 0.35, 5, 0).p_value == pytest.approx(2 / 32)


def test_every_row_is_held_out_once_and_each_class_in_every_part():
    from hf_softext.heads.naive_bayes_compare import _folds

    labels = torch.randint(5, (103,))
    part = _folds(labels, 4, seed=0)
    for one in range(5):
        count = torch.bincount(part[labels == one], minlength=4)
        assert count.max() - count.min() <= 1
    assert not torch.equal(part, _folds(labels, 4, seed=1))


def test_fit_probe():
    features, labels = draw(rows=90)
    features = features * torch.tensor([0.1, 1, 1, 1, 1, 10]) + 5
    bayes = fit_probe(features, labels, "naive_bayes")
    probe = NaiveBayesProbe().fit_features(features, labels)
    torch.testing.assert_close(bayes(features.double()), probe(features))
    logistic = fit_probe(features, labels, "logistic")
    assert (logistic(features.double()).argmax(-1) == labels).float().mean() > 0.9
    # standardised features: their units do not matter
    scaled = fit_probe(features * 7 - 1, labels, "logistic")
    torch.testing.assert_close(
        scaled((features * 7 - 1).double()), logistic(features.double()), rtol=1e-3, atol=1e-3
    )
    winner = compare_probes(features, labels).winner
    auto, expected = fit_probe(features, labels), fit_probe(features, labels, winner)
    assert torch.equal(auto.weight, expected.weight)
    for call, message in (
        (lambda: fit_probe(features, labels, "svm"), "probe='svm' must be one of"),
        (lambda: compare_probes(features, labels, folds=1), "folds=1 must be at least 2"),
        (lambda: compare_probes(features[:4], labels[:4]), "class 1 has 1 rows"),
        (lambda: fit_probe(features, 2 * labels), "class 1 has no row"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
