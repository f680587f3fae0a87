"""The region search against the published loop, and the bounds at their ends."""

import math

import pytest
import torch

from hf_softext.functional.empirical_cdf import class_lists
from hf_softext.heads.sdm.bounds import effective_sample_size, sample_size_error
from hf_softext.heads.sdm.region import find_region, threshold_curve


def reference(outputs, similarity, labels, alpha, num_labels):
    """The published algorithm as it stands: every candidate, every class, sorted anew."""
    levels = sorted({value for value in similarity.tolist() if value >= 1})
    for level in levels:
        thresholds = []
        for label in range(num_labels):
            kept = sorted(outputs[(labels == label) & (similarity >= level)].tolist())
            place = min(int((1 - alpha) * len(kept)), len(kept) - 1)
            thresholds.append(kept[place] if kept else 0.0)
        if all(value >= alpha for value in thresholds):
            return level, thresholds
    return math.inf, [0.0] * num_labels


def scores(count, labels, strength):
    similarity = torch.randint(0, 12, (count,)).float()
    outputs = 1 - torch.rand(count) ** strength * torch.exp(-similarity / 4)
    return outputs, similarity, torch.randint(labels, (count,))


def test_equals_the_published_loop():
    found_some = 0
    for trial in range(60):
        labels = 1 + trial % 4
        given = scores(20 + 5 * trial, labels, 1 + trial % 5)
        for alpha in (0.6, 0.8, 0.95, 1.0):
            region = find_region(*given, alpha, labels)
            level, thresholds = reference(*given, alpha, labels)
            assert float(region.min_similarity) == level
            assert torch.equal(region.thresholds, torch.tensor(thresholds))
            found_some += level < math.inf
    assert 20 < found_some < 220


def test_the_index_is_rounded_as_published():
    # (1 - 0.9) * 10 is a little below 1
    outputs = torch.linspace(0.91, 0.99, 10)
    region = find_region(outputs, torch.full((10,), 5.0), torch.zeros(10).long(), 0.9, 1)
    assert float(region.thresholds) == pytest.approx(0.91)


def test_ends():
    similarity, labels = torch.tensor([0.0, 3, 5, 7, 9]), torch.tensor([0, 1, 0, 1, 0])
    perfect = find_region(torch.ones(5), similarity, labels, 1.0, 2)
    # the least similarity of a row that is not out of distribution
    assert float(perfect.min_similarity) == 3
    hopeless = find_region(torch.full((5,), 0.4), similarity, labels, 0.6, 2)
    assert float(hopeless.min_similarity) == math.inf
    assert not hopeless.thresholds.any()
    without = find_region(torch.ones(5), torch.zeros(5), labels, 0.6, 2)
    assert float(without.min_similarity) == math.inf


def test_a_higher_accuracy_never_asks_for_less_similarity():
    given = scores(800, 3, 3)
    found = [float(find_region(*given, alpha, 3).min_similarity) for alpha in (0.6, 0.7, 0.8, 0.9)]
    assert found == sorted(found)
    assert len(set(found)) > 1


def test_curve_shows_which_class_is_in_the_way():
    outputs = torch.tensor([0.99, 0.98, 0.97, 0.5, 0.55, 0.6])
    similarity, labels = torch.tensor([2.0, 4, 6, 2, 4, 6]), torch.tensor([0, 0, 0, 1, 1, 1])
    levels, thresholds = threshold_curve(outputs, similarity, labels, 0.9, 2)
    assert levels.tolist() == [2, 4, 6]
    assert thresholds[:, 0].ge(0.9).all()
    assert torch.equal(thresholds[:, 1], outputs[3:])


def test_effective_sample_size_counts_all_rows_below():
    lists = class_lists(torch.tensor([0.0, 0, 2, 5, 5, 1]), torch.tensor([0, 0, 0, 0, 1, 1]), 3)
    found = effective_sample_size(lists, torch.tensor([0.0, 2, 5, 9]))
    # at most one less than the class has; none without rows
    assert found.tolist() == [[0, 0, 0], [2, 1, 0], [3, 1, 0], [3, 1, 0]]


def test_band_is_that_of_the_inequality():
    sizes = torch.tensor([0.0, 50, 100, 400, 2000])
    found = sample_size_error(sizes, 0.95)
    assert found.tolist() == pytest.approx([1, 0.192, 0.136, 0.068, 0.030], abs=5e-4)
    assert sample_size_error(sizes, 1.0).tolist() == [1] * 5
