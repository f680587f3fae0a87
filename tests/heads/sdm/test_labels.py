"""Labels and data sets as people have them: names, parts of the classes, other containers."""

import re

import datasets
import pytest
import torch

from hf_softext import MahalanobisDetector, SdmHead
from tests.heads.sdm.cases import equal
from tests.heads.sdm.test_model import SETTINGS, texts
from tests.heads.tiny import build, tokenizer

EVERY = [f"intent {number}" for number in range(20)]
# two of them, far apart
PART = {0: 7, 1: 12}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return build("bert")


def fit(model, data, **settings):
    return SdmHead.fit(model, tokenizer(), data, **SETTINGS | settings)


def part_of_the_classes():
    rows = [{**row, "label": PART[row["label"]]} for row in texts(200)]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=EVERY)}
    )
    return rows, datasets.Dataset.from_list(rows, features=features)


def test_a_part_of_named_classes_is_numbered_anew(model):
    rows, table = part_of_the_classes()
    wanted = {0: "intent 7", 1: "intent 12"}
    plain = fit(model, texts(200))
    for data, settings in (
        (table, {}),
        (rows, {"id2label": dict(enumerate(EVERY))}),
        (rows, {"id2label": {number: EVERY[number] for number in PART.values()}}),
    ):
        found = fit(model, data, **settings)
        assert found.config.id2label == wanted
        assert equal(found.support_labels, plain.support_labels)
        assert equal(found.thresholds, plain.thresholds)
    for data, settings in ((rows, {}), (table, {"num_labels": 20})):
        with pytest.raises(ValueError, match=r"no row has label .*labels by their names are num"):
            fit(model, data, **settings)


def test_messages_call_a_class_by_its_name(model):
    few = [*texts(20), {"text": "w1 w2 w80", "label": 2}]
    named = [{**row, "label": ["aa", "bb", "zz"][row["label"]]} for row in few]
    with pytest.raises(ValueError, match=r"class 'zz' \(2\) has a single distinct row"):
        fit(model, named)


def test_containers_that_are_no_dataset_say_what_to_give(model):
    pandas = pytest.importorskip("pandas")
    rows = texts(20)
    table = datasets.Dataset.from_list(rows)
    for data, message in (
        (pandas.DataFrame(rows), "is of pandas: give datasets.Dataset.from_pandas("),
        (datasets.DatasetDict(train=table, test=table), "has several splits (train, test): give"),
        (table.to_iterable_dataset(), "of type IterableDataset: give a datasets.Dataset"),
        ({"text": ["w1"], "label": [0]}, "of type dict: give a datasets.Dataset"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            fit(model, data)
        with pytest.raises(TypeError, match=re.escape(message)):
            MahalanobisDetector().fit(model, tokenizer(), data)
