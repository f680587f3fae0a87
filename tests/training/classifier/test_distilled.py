"""A classifier that another one taught, from the command line to the saved checkpoint."""

import json
import shutil

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from hf_softext.cli import train as commands
from hf_softext.training.classifier.distilled import DistilledArguments, train_distilled
from hf_softext.training.classifier.run import train_classifier
from tests.training.classifier.test_run import TOPICS, arguments, topics, write

NAMES = ["dogs", "cats", "birds"]


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", topics())


@pytest.fixture
def teacher(bert_folder, rows, tmp_path):
    """A classifier with its classes in an order of its own."""
    folder = tmp_path / "teacher"
    shutil.copytree(bert_folder, folder)
    names = dict(enumerate(NAMES))
    given = {"num_labels": 3, "id2label": names, "label2id": {n: i for i, n in names.items()}}
    AutoModelForSequenceClassification.from_pretrained(folder, **given).save_pretrained(folder)
    train_classifier(arguments(tmp_path / "taught", folder, rows))
    return tmp_path / "taught"


def distilled(folder, model, teacher, data, **given):
    plain = arguments(folder, model, data)
    fields = ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "save_strategy")
    known = {name: getattr(plain, name) for name in (*fields, "use_cpu", "disable_tqdm")}
    return DistilledArguments(
        output_dir=str(folder),
        model=str(model),
        teacher=str(teacher),
        data=data,
        report_to=[],
        **{**known, **given},
    )


def test_a_student_learns_in_the_order_of_its_teacher(bert_folder, teacher, rows, tmp_path):
    # nothing but the teacher
    given = {"loss": "kd", "loss_kwargs": {"alpha": 1.0}}
    args = distilled(tmp_path / "out", bert_folder, teacher, rows, **given)
    assert train_distilled(args).scores["accuracy"] > 0.8
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == NAMES
    classify = pipeline("text-classification", model=str(tmp_path / "out"))
    assert classify(" ".join(TOPICS["birds"][:5]))[0]["label"] == "birds"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "tiny-bert, taught by taught, trained with `kd`" in card


def test_the_command_line(bert_folder, teacher, rows, tmp_path, capsys):
    config = tmp_path / "distilled.yaml"
    config.write_text(f"model: {bert_folder}\nteacher: {teacher}\nloss: dhkd\naux_head: mlp\n")
    words = [str(config), "--data", rows, "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]
    words += ["--use_cpu", "true", "--disable_tqdm", "true", "--save_steps", "1"]
    commands.distill(words)
    assert f"saved in {tmp_path / 'out'}" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not [name for name in names if name.startswith("softext")]


def test_mistakes(bert_folder, teacher, rows, tmp_path):
    def refuse(message, **given):
        args = {"model": bert_folder, "teacher": teacher, "data": rows, **given}
        with pytest.raises(ValueError, match=message):
            train_distilled(distilled(tmp_path / "out", **args))
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)

    refuse("is a BertModel, not a text classifier", teacher=bert_folder)
    refuse("'ce' does not need teacher", loss="ce")
    unnamed = tmp_path / "unnamed"
    shutil.copytree(teacher, unnamed)
    config = json.loads((unnamed / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(3)}
    (unnamed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refuse("classes have no names, and those of the data are birds, cats", teacher=unnamed)
    other = write(tmp_path / "other.jsonl", topics()[:60:3] + topics()[1:60:3])
    refuse("teacher has 3 classes and the model 2", data=other)
    tokenizer = json.loads((unnamed / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w0"], vocabulary["w1"] = vocabulary["w1"], vocabulary["w0"]
    (unnamed / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refuse("has another vocabulary than model=", teacher=unnamed)
