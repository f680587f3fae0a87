"""Runs of neighbours against a plain sort."""

import pytest
import torch

from hf_softext.functional.nearest_rows import leading_matches, nearest_rows


def reference(queries, query_classes, rows, row_classes, exclude=None, limit=None):
    """Sort all rows, in float64, and walk from the nearest on while the class is the query's."""
    distance = (queries[:, None].double() - rows[None].double()).square().sum(-1)
    runs = []
    for query, row in enumerate(distance.sort(dim=1, stable=True).indices.tolist()):
        kept = [one for one in row if exclude is None or one != int(exclude[query])]
        run = 0
        while run < len(kept) and row_classes[kept[run]] == query_classes[query]:
            run += 1
        runs.append(run if limit is None else min(run, limit))
    if exclude is not None:
        known = (exclude >= 0).nonzero().squeeze(1)
        distance[known, exclude[known]] = torch.inf
    return torch.tensor(runs), distance.amin(1)


@pytest.mark.parametrize("whole", [True, False], ids=["ties", "no ties"])
def test_runs_equal_a_full_sort(whole):
    for trial in range(150):
        b, n, m, c = (int(torch.randint(1, high, ())) for high in (12, 40, 5, 5))
        # whole numbers are exact in any order of summation, and make many ties
        queries, rows = (
            torch.randint(-2, 3, (size, m)).float() if whole else torch.randn(size, m)
            for size in (b, n)
        )
        classes, wanted = torch.randint(-1, c, (n,)), torch.randint(c, (b,))
        if trial % 3 == 0:
            # long runs
            classes, wanted = classes.clamp(max=0), wanted.clamp(max=0)
        exclude = torch.randint(-1, n, (b,)) if trial % 2 else None
        limit = None if trial % 5 else 3
        found, nearest, distance = leading_matches(
            queries, wanted, rows, classes, exclude=exclude, limit=limit, max_bytes=300
        )
        expected, nearest_distance = reference(queries, wanted, rows, classes, exclude, limit)
        assert torch.equal(found, expected), trial
        torch.testing.assert_close(distance.double(), nearest_distance, atol=1e-6, rtol=1e-6)
        known = distance < torch.inf
        direct = (queries - rows[nearest.clamp(min=0)]).square().sum(1)
        assert torch.equal(direct[known], distance[known])
        assert (nearest[~known] == -1).all()


def test_hand_case():
    rows = torch.tensor([[1.0], [2], [3], [4]])
    query, right, wrong = torch.zeros(1, 1), torch.tensor([7]), torch.tensor([2])
    classes = torch.tensor([7, 7, -1, 7])
    assert int(leading_matches(query, right, rows, classes)[0]) == 2
    assert int(leading_matches(query, wrong, rows, classes)[0]) == 0
    assert int(leading_matches(query, right, rows[2:], classes[2:])[0]) == 0
    assert int(leading_matches(query, right, rows[:1], classes[:1])[0]) == 1
    # the only row is the query itself
    own = torch.tensor([0])
    found, nearest, distance = leading_matches(query, right, rows[:1], classes[:1], exclude=own)
    assert (int(found), int(nearest), float(distance)) == (0, -1, float("inf"))


def test_a_duplicate_is_at_distance_zero_far_from_the_origin():
    rows = torch.randn(300, 16) + 1000
    order = torch.randperm(300)
    classes = torch.zeros(300, dtype=torch.int64)
    _, nearest, distance = leading_matches(rows[order], classes, rows, classes)
    assert torch.equal(nearest, order)
    assert not distance.any()
    assert not nearest_rows(rows[order], rows, 3)[1][:, 0].any()


def test_neither_order_nor_scale_of_the_rows_matters():
    rows, queries = torch.randn(200, 6), torch.randn(30, 6)
    classes, wanted = torch.randint(-1, 2, (200,)), torch.randint(2, (30,))
    order = torch.randperm(200)
    expected, nearest, _ = leading_matches(queries, wanted, rows, classes)
    found, other, _ = leading_matches(queries, wanted, rows[order], classes[order])
    assert torch.equal(found, expected)
    assert torch.equal(order[other], nearest)
    assert torch.equal(leading_matches(queries * 8, wanted, rows * 8, classes)[0], expected)


@pytest.mark.parametrize("max_bytes", [1, 10_000, 2**26])
def test_nearest_rows_equal_a_full_sort(max_bytes):
    rows, queries = torch.randint(-2, 3, (60, 3)).float(), torch.randint(-2, 3, (17, 3)).float()
    distance = (queries[:, None] - rows).square().sum(-1)
    expected = distance.sort(dim=1, stable=True)
    found, far = nearest_rows(queries, rows, 60, max_bytes=max_bytes)
    assert torch.equal(found, expected.indices)
    assert torch.equal(far, expected.values)
    assert torch.equal(nearest_rows(queries, rows, 4, max_bytes=max_bytes)[1], far[:, :4])


def test_nothing_to_search():
    empty, classes = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    found, nearest, distance = leading_matches(
        torch.ones(2, 3), classes.new_ones(2), empty, classes
    )
    assert (found.tolist(), nearest.tolist()) == ([0, 0], [-1, -1])
    assert distance.isinf().all()
    assert leading_matches(empty, classes, torch.ones(2, 3), classes.new_ones(2))[0].shape == (0,)
    assert nearest_rows(torch.ones(2, 3), empty, 5)[0].shape == (2, 0)


def test_reduced_precision_elsewhere_does_not_reach_the_search():
    rows, classes = torch.randn(50, 4), torch.zeros(50, dtype=torch.int64)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = leading_matches(rows, classes, rows, classes)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    for one, other in zip(found, leading_matches(rows, classes, rows, classes), strict=True):
        assert torch.equal(one, other)
