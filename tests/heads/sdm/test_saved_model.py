"""A head behind its backbone in the hands of transformers' own tools."""

import copy
import subprocess
import sys

import datasets
import pytest
import torch
import transformers as hf
from torch.nn import functional as F

from hf_softext import SdmForSequenceClassification, SdmHead
from hf_softext.registration import register_pipelines
from tests.heads.sdm.cases import same
from tests.heads.sdm.test_model import SETTINGS, TASK, encoded, texts
from tests.heads.tiny import build, tokenizer

NAMES = ("second", "first")


@pytest.fixture(scope="module")
def model():
    """Its backbone calls the classes the other way round."""
    torch.manual_seed(3)
    body = build("bert")
    body.config.id2label = {0: "first", 1: "second"}
    body.config.label2id = {"first": 0, "second": 1}
    named = {0: NAMES[0], 1: NAMES[1]}
    head = SdmHead.fit(body, tokenizer(), texts(300), id2label=named, **SETTINGS)
    return SdmForSequenceClassification.from_backbone(body, head)


def test_the_classes_of_the_config_are_those_of_the_head(model, tmp_path):
    rows = texts(20, seed=5)
    wanted = [NAMES[int(label)] for label in model(**encoded(rows)).prediction]
    assert set(wanted) == set(NAMES)
    stock = hf.pipeline("text-classification", model=model, tokenizer=tokenizer(), device="cpu")
    assert [one["label"] for one in stock([row["text"] for row in rows])] == wanted
    assert model.model.config.id2label == {0: "first", 1: "second"}
    assert model.config.label2id == {"second": 0, "first": 1}
    assert model.config.num_labels == 2
    # and so they are saved, beside a backbone that is as it was
    model.save_pretrained(tmp_path)
    assert hf.AutoConfig.from_pretrained(tmp_path).id2label == model.config.id2label
    kept = hf.AutoConfig.from_pretrained(tmp_path / "backbone")
    assert kept.id2label == {0: "first", 1: "second"}
    loaded = SdmForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == model.config.id2label
    assert same(loaded.head, model.head)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "sdm_config.json", "sdm_head.safetensors", "sdm_support.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_transformers_puts_no_random_classifier_on_a_saved_backbone(model, tmp_path):
    register_pipelines()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Could not load model"):
        hf.pipeline("text-classification", model=str(tmp_path))
    # nor where this package was not imported
    code = (
        "import sys, transformers\n"
        "try:\n    transformers.pipeline('text-classification', model=sys.argv[1])\n"
        "except ValueError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert "has model type `sdm_classifier` but Transformers does not recognize" in done.stdout
    assert hf.pipeline(TASK, model=str(tmp_path))(texts(1)[0]["text"])["label"] in NAMES


def test_folders_of_before_are_read_still(model, tmp_path):
    # the backbone beside the head
    model.model.save_pretrained(tmp_path)
    model.head.save_pretrained(tmp_path)
    loaded = SdmForSequenceClassification.from_pretrained(tmp_path)
    inputs = encoded(texts(10, seed=6))
    assert torch.equal(loaded(**inputs).probs, model(**inputs).probs)


def test_a_trainer_predicts_and_evaluates_and_does_not_train(model, tmp_path):
    rows, words = texts(20, seed=7), tokenizer()
    data = datasets.Dataset.from_list(rows).map(lambda row: words(row["text"]))
    given = hf.TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, max_steps=1
    )
    trainer = hf.Trainer(
        model=model, args=given, train_dataset=data, data_collator=hf.DataCollatorWithPadding(words)
    )
    found, output = trainer.predict(data), model(**encoded(rows))
    labels = torch.tensor([row["label"] for row in rows])
    torch.testing.assert_close(
        torch.from_numpy(found.predictions), output.logits, atol=1e-4, rtol=1e-4
    )
    assert found.label_ids.tolist() == labels.tolist()
    loss = float(F.cross_entropy(output.logits, labels))
    assert found.metrics["test_loss"] == pytest.approx(loss, abs=1e-4)
    with pytest.raises(ValueError, match="neither backbone nor head are trained here"):
        trainer.train()
    model.eval()


def test_texts_and_names_are_enough_to_go_on(model):
    words, more = tokenizer(), texts(40, seed=8)
    names = [NAMES[row["label"]] for row in more]
    by_name, by_number = copy.deepcopy(model.head), copy.deepcopy(model.head)
    features = by_name.extract(model.model, words, more, progress=False)
    torch.testing.assert_close(
        by_name(features).probs, model(**encoded(more)).probs, atol=1e-4, rtol=1e-4
    )
    for head, labels in ((by_name, names), (by_number, [row["label"] for row in more])):
        head.add_support(features[:20], labels[:20])
        head.recalibrate(features=features[20:], labels=labels[20:], alpha=0.6)
    assert same(by_name, by_number)
    for call in (
        lambda: by_name.add_support(features[:1] + 1, ["third"]),
        lambda: by_name.recalibrate(features=features, labels=[*names[1:], "third"]),
    ):
        with pytest.raises(ValueError, match="'third', which is none of id2label's names: sec"):
            call()
    with pytest.raises(ValueError, match="fitted on"):
        by_name.extract(build("llama"), words, more)
