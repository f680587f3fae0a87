"""Classifiers from the command line to the saved checkpoint."""

import json
import random

import numpy as np
import pytest
import torch
from sklearn import metrics
from transformers import pipeline

from hf_softext.cli import train as commands
from hf_softext.data.labelled import find_labels, read_labelled
from hf_softext.training.classifier import run as classifier
from hf_softext.training.classifier.arguments import ClassifierArguments
from hf_softext.training.classifier.run import train_classifier
from hf_softext.training.classifier.scores import classification_scores
from hf_softext.training.softext_trainer import SoftextTrainer
from tests.training.conftest import WORDS

TOPICS = {"cats": WORDS[:8], "dogs": WORDS[8:16], "birds": WORDS[16:24]}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


def topics(count=90):
    choose = random.Random(0)
    names = list(TOPICS)
    return [
        {"text": " ".join(choose.choices(TOPICS[names[i % 3]], k=6)), "label": names[i % 3]}
        for i in range(count)
    ]


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", topics())


def arguments(folder, model, data, **given):
    plain = {
        "num_train_epochs": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 9,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return ClassifierArguments(
        output_dir=str(folder), model=str(model), data=data, **{**plain, **given}
    )


def test_a_classifier_learns_and_is_saved(bert_folder, rows, tmp_path):
    given = {"loss": "gce", "loss_kwargs": {"q": 0.5}, "gradient_accumulation_steps": 2}
    result = train_classifier(arguments(tmp_path / "out", bert_folder, rows, **given))
    assert result.scores["accuracy"] > 0.8
    assert not (tmp_path / "out.partial").exists()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "eval_results.json"} <= names
    assert not {"training_args.bin", "softext_loss.json"} & names
    saved = json.loads((tmp_path / "out" / "eval_results.json").read_text(encoding="utf-8"))
    assert saved["loss"]["q"] == 0.5
    assert saved["scores"] == result.scores
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "1805.07836" in card
    classify = pipeline("text-classification", model=str(tmp_path / "out"))
    assert classify(" ".join(TOPICS["birds"][:5]))[0]["label"] == "birds"
    with pytest.raises(FileExistsError, match="output_dir"):
        train_classifier(arguments(tmp_path / "out", bert_folder, rows))


def test_several_labels_a_text(bert_folder, tmp_path):
    rows = [{"text": row["text"], "label": [row["label"], "pets"]} for row in topics()]
    data = write(tmp_path / "many.jsonl", rows)
    result = train_classifier(
        arguments(tmp_path / "out", bert_folder, data, loss="decoupled_softmax")
    )
    assert {"micro_f1", "macro_f1", "precision_at_1"} <= set(result.scores)
    with pytest.raises(ValueError, match="'gce' is for multiclass, token problems"):
        train_classifier(arguments(tmp_path / "no", bert_folder, data, loss="gce"))


def test_an_interrupted_run_continues_to_the_same_weights(
    bert_folder,
    rows,
    tmp_path,
    monkeypatch,
    capsys,
):
    given = {"loss": "aldr_kl", "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 3}
    train_classifier(arguments(tmp_path / "whole", bert_folder, rows, **given))
    calls = []
    step = SoftextTrainer.compute_loss

    def stop_at_the_sixth(*args, **kwargs):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SoftextTrainer, "compute_loss", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(arguments(tmp_path / "cut", bert_folder, rows, **given))
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ValueError, match="unfinished run with another loss"):
        train_classifier(arguments(tmp_path / "cut", bert_folder, rows, **{**given, "loss": "ce"}))
    train_classifier(arguments(tmp_path / "cut", bert_folder, rows, **given))
    assert "cut.partial continues from step 3\n" in capsys.readouterr().out
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_the_command_line(bert_folder, rows, tmp_path, capsys):
    config = tmp_path / "classifier.yaml"
    config.write_text(f"model: {bert_folder}\nloss: ldr_kl\nloss_kwargs:\n  lam: 2\n")
    words = [str(config), "--data", rows, "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    words += ["--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no"]
    commands.classifier(words)
    assert f"saved in {tmp_path / 'out'}" in capsys.readouterr().out
    config.write_text(f"model: {bert_folder}\nlos: ldr_kl\n")
    with pytest.raises(ValueError, match=r"unknown argument 'los'.*'loss'"):
        commands.classifier(words)


def test_a_frozen_encoder_stays(bert_folder, rows, tmp_path):
    given = {"freeze_encoder": True, "max_steps": 2}
    train_classifier(arguments(tmp_path / "out", bert_folder, rows, **given))
    before, after = (
        classifier.AutoModelForSequenceClassification.from_pretrained(folder).bert.state_dict()
        for folder in (bert_folder, tmp_path / "out")
    )
    assert all(
        torch.equal(after[name], value) for name, value in before.items() if "pooler" not in name
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_column": "body"}, "text_column='body' is not a column"),
        ({"label_column": "topic"}, "label_column='topic' is not a column"),
        ({"held_out": 1.5}, "held_out=1.5 must be above 0"),
        ({"loss": "cee"}, "Unknown loss method 'cee'.*'ce'"),
        ({"loss_kwargs": "{"}, "loss_kwargs='{' is not JSON"),
        ({"loss": "kd"}, "needs 'teacher_logits'"),
        ({"max_length": 1}, "max_length=1 must be at least 2"),
    ],
)
def test_mistakes(given, message, bert_folder, rows, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_classifier(arguments(tmp_path / "out", bert_folder, rows, **given))
    assert not (tmp_path / "out").exists()


def test_what_failed_before_its_first_checkpoint_is_in_nobodys_way(bert_folder, rows, tmp_path):
    wrong = {"loss": "gce", "loss_kwargs": {"q": 1.5}, "max_steps": 1}
    with pytest.raises(ValueError, match=r"q=1.5"):
        train_classifier(arguments(tmp_path / "out", bert_folder, rows, **wrong))
    right = wrong | {"loss_kwargs": {"q": 0.5}}
    assert train_classifier(arguments(tmp_path / "out", bert_folder, rows, **right)).scores


def test_labels_are_classes_lists_or_values(tmp_path):
    assert find_labels([10, 2, 2]).names == ("2", "10")
    assert find_labels(["b", "a"]).encode("b") == 1
    many = find_labels([["a"], ["b", "a"], []])
    assert many.kind == "multi_label_classification"
    assert many.encode(["b"]) == [0.0, 1.0]
    assert find_labels([0.5, 1.0]).kind == "regression"
    with pytest.raises(ValueError, match="label 'c' is none of the 2 classes"):
        many.encode(["c"])
    missing = write(tmp_path / "missing.jsonl", [{"text": "a", "label": None}])
    with pytest.raises(ValueError, match="no label in row 0"):
        read_labelled(missing, "text", "label")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_labelled(str(tmp_path / "no.csv"), "text", "label")
    for name, text, match in (
        ("a.txt", "a", "use one of"),
        ("empty.jsonl", "", "could not be read: it is empty"),
        ("cut.jsonl", '{"text": "a", "label": 1}\n{"tex', "could not be read: JSON parse error"),
        ("column.csv", "text,y\na,1\n", "label_column='label' is not a column of the data"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            read_labelled(str(tmp_path / name), "text", "label")


def test_scores_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(40, 4)), draw.integers(0, 4, 40)
    scores = classification_scores(logits, labels, "single_label_classification")
    guess = logits.argmax(-1)
    assert scores == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, guess),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, guess),
            "macro_f1": metrics.f1_score(labels, guess, average="macro"),
        }
    )
    truth = draw.random((40, 4)) < 0.4
    scores = classification_scores(logits, truth.astype(float), "multi_label_classification")
    assert scores["micro_f1"] == pytest.approx(metrics.f1_score(truth, logits > 0, average="micro"))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, logits > 0, average="macro"))
    values = draw.normal(size=40)
    scores = classification_scores(logits[:, :1], values, "regression")
    assert scores["r2"] == pytest.approx(metrics.r2_score(values, logits[:, 0]))
