"""Distribution functions of classes at their edges."""

import torch

from hf_softext.functional.empirical_cdf import class_lists, count_below, fraction_below


def test_counts_equal_a_comparison_of_all_pairs():
    values, classes = torch.randint(6, (80,)).float(), torch.randint(-1, 5, (80,))
    lists = class_lists(values, classes, 5)
    assert lists.sizes.tolist() == [int((classes == label).sum()) for label in range(5)]
    queries = torch.randint(-1, 8, (30,)).float()
    expected = torch.stack(
        [(values[classes == label] < queries[:, None]).sum(1) for label in range(5)], 1
    )
    assert torch.equal(count_below(lists, queries), expected)
    # a column of its own for each class
    columns = torch.randint(-1, 8, (30, 5)).float()
    expected = torch.stack(
        [(values[classes == label] < columns[:, label, None]).sum(1) for label in range(5)], 1
    )
    assert torch.equal(count_below(lists, columns), expected)
    sizes = lists.sizes.float()
    assert torch.equal(fraction_below(lists, columns), expected / sizes)


def test_edges():
    lists = class_lists(torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([0, 0, 2, 2]), 3)
    found = fraction_below(lists, torch.tensor([0.0, 1, 2, 3, 4, torch.inf]))
    assert found[:, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    # a class without values
    assert found[:, 1].tolist() == [1] * 6
    assert found[:, 2].tolist() == [0, 0, 0, 1, 1, 1]
    assert fraction_below(lists, torch.zeros(0)).shape == (0, 3)
