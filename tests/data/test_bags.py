"""Bags of labelled samples, private ones among them."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from hf_softext.data.bags import make_bags
from hf_softext.functional.label_dp import private_bag_means


def test_private_bags(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(400, generator=draw) * 2 - 1
    data = Dataset.from_dict({"label": values.tolist()})
    exact, noisy = (make_bags(data, 4, 0, **given) for given in ({}, {"epsilon": 2, "bound": 1}))
    error = torch.tensor(noisy["labels"]) - torch.tensor(exact["labels"])
    # Laplace of scale 2B/(k epsilon) = 1/4, the same for a whole bag
    assert error.reshape(100, 4).std(1).max() < 1e-6
    assert error[::4].abs().mean().item() == pytest.approx(0.25, rel=0.25)
    labels = {"label": (torch.arange(400) % 3).tolist()}
    kinds = Features({"label": ClassLabel(names=["a", "b", "c", "never"])})
    release = []
    monkeypatch.setattr(
        "hf_softext.data.bags.private_bag_means",
        lambda *args, **given: release.append(given) or private_bag_means(*args, **given),
    )
    shares = torch.tensor(make_bags(Dataset.from_dict(labels, kinds), 4, 0, epsilon=8.0)["labels"])
    assert shares.shape == (400, 4)
    # a class that changes moves two shares by 1/k
    assert [(one["epsilon"], one["bound"]) for one in release] == [(4.0, 0.5)] * 4
    with pytest.raises(ValueError, match="classes is missing: give classes=, their"):
        make_bags(Dataset.from_dict(labels), 4, 0, epsilon=8.0)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(400))
    assert shares[:, 3].max() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bag_size": 0}, "bag_size=0 must be at least 1"),
        ({"bag_size": 1.5}, "bag_size=1.5 must be at least 1, and whole"),
        ({"epsilon": -1.0, "bound": 1.0}, "epsilon=-1.0 must be above 0"),
        ({"label_column": "y"}, "label_column='y': the dataset has label"),
        ({"epsilon": 1.0}, "bound=None, epsilon=1.0: a regression needs both"),
        ({"bound": 1.0}, "bound=1.0, epsilon=None"),
    ],
)
def test_bags_that_cannot_be_made(given, message):
    data = Dataset.from_dict({"label": [0.5, 1.0]}, Features({"label": Value("float32")}))
    with pytest.raises(ValueError, match=message):
        make_bags(data, **{"bag_size": 1, "seed": 0, **given})
