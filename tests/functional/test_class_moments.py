"""Moments of classes: batches against one pass, and against a plain definition."""

import pytest
import torch

from hf_softext.functional import class_moments as module
from hf_softext.functional.class_moments import class_moments, merge_moments


def draw(dtype=torch.float64):
    # far from 0, where a difference of squares has nothing left
    features = (1e6 + torch.randn(101, 5, dtype=torch.float64)).to(dtype)
    return features, torch.randint(3, (101,))


def reference(features, labels, classes):
    parts = [features[labels == one].double() for one in range(classes)]
    means = [part.mean(0) if len(part) else torch.zeros(5).double() for part in parts]
    pairs = list(zip(parts, means, strict=True))
    return (
        torch.tensor([len(part) for part in parts]).double(),
        torch.stack(means),
        torch.stack([(part - mean).square().sum(0) for part, mean in pairs]),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_pass_is_the_definition(dtype, monkeypatch):
    features, labels = draw(dtype)
    # class 3 has no row, in any part
    for chunk in (16384, 7):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        found = class_moments(features, labels, 4)
        for one, expected in zip(found, reference(features, labels, 4), strict=True):
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-6)


def test_parts_in_any_order_are_the_whole():
    features, labels = draw()
    whole = class_moments(features, labels, 3)
    cuts = [
        class_moments(x, y, 3) for x, y in zip(features.split(13), labels.split(13), strict=True)
    ]
    for order in (cuts, cuts[::-1]):
        found = order[0]
        for one in order[1:]:
            found = merge_moments(found, one)
        for one, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-6)
    nothing = class_moments(features[:0], labels[:0], 3)
    for one, expected in zip(merge_moments(nothing, whole), whole, strict=True):
        torch.testing.assert_close(one, expected, rtol=0.0, atol=0.0)
