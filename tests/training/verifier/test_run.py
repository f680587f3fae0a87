"""The fit of an SDM head as a program: what is written is what was measured, and it goes on."""

import csv
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from hf_softext import SdmForSequenceClassification, SdmHead, SdmVerifier
from hf_softext.heads.sdm import training as sdm_training
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.verifier.arguments import VerifierArguments
from hf_softext.training.verifier.folder_report import report_folder
from hf_softext.training.verifier.run import fit_verifier
from tests.training.conftest import WORDS

PROGRAM = str(Path(__file__).parents[3] / "trainers" / "train_verifier.py")
QUICK = {
    "alpha": 0.8,
    "epochs": 12,
    "num_splits": 1,
    "exemplar_dim": 12,
    "learning_rate": 1e-2,
    "held_out": 0.25,
    "disable_tqdm": True,
    "use_cpu": True,
}
INTENTS = ("alarm", "balance", "cook")


def rows(count, seed=0):
    """Texts of words of their intent and one of any; no text twice."""
    choose, found = random.Random(seed), {}
    while len(found) < count:
        place = len(found) % 3
        words = choose.choices(WORDS[4 * place : 4 * place + 4], k=4) + choose.choices(WORDS, k=1)
        choose.shuffle(words)
        found.setdefault(" ".join(words), INTENTS[place])
    return list(found.items())


def completions(count, seed=0):
    """Prompts, and completions that are good where they are of the first words."""
    choose, found = random.Random(seed), {}
    while len(found) < count:
        good = len(found) % 2 == 0
        prompt = " ".join(choose.choices(WORDS, k=3))
        words = WORDS[:4] if good else WORDS[20:24]
        found.setdefault(prompt, (" ".join(choose.choices(words, k=3)), good))
    return [(prompt, answer, good) for prompt, (answer, good) in found.items()]


def write(path, columns, lines):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *lines])
    return str(path)


def texts_file(folder, count=240, seed=0):
    return write(folder / "rows.csv", ["text", "label"], rows(count, seed))


def completions_file(folder, count=240, seed=0):
    columns = ["prompt", "completion", "is_good"]
    return write(folder / "answers.csv", columns, completions(count, seed))


def arguments(out, model, data, **changed):
    given = {"model": str(model), "data": data, "output_dir": str(out), **QUICK, **changed}
    return VerifierArguments(**given)


def fitted(*given, **changed):
    result = fit_verifier(arguments(*given, **changed))
    assert result is not None
    return result


def contents(folder):
    """Every file but the page, which the same figures make."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def code_of(card):
    found = re.search(r"---\n\n```python\n(import hf_softext\n.*?)```", card, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_head_on_texts_is_what_was_measured(bert_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    test = rows(60, seed=1)
    # a row of the fit says nothing, nor does one that is the same to the tokenizer
    ((text, label),) = rows(1)
    repeated = [(text, label), (text.replace(" ", "  "), label)]
    given = write(tmp_path / "test.csv", ["text", "label"], [*test, *repeated])
    result = fitted(
        "out", bert_folder, texts_file(tmp_path, 300), test_data=given, report=True, epochs=60
    )
    out = tmp_path / "out"
    assert not Path("out.partial").exists()
    noted = json.loads((out / "eval_results.json").read_text("utf-8"))
    assert (noted["train_rows"], noted["test_rows"], noted["repeated"]) == (300, 60, 2)
    assert noted["classes"] == list(INTENTS)
    assert noted["scores"] == result.scores
    # from the folder, by the other door
    model = hf.BertModel.from_pretrained(bert_folder)
    loaded = SdmForSequenceClassification.from_pretrained(out, model=model)
    words = hf.AutoTokenizer.from_pretrained(bert_folder)
    output = loaded(**words([text for text, _ in test], return_tensors="pt", padding=True))
    right = np.array([INTENTS[one] for one in output.prediction]) == [one for _, one in test]
    for name, admit in (
        ("all", np.ones(60, dtype=bool)),
        ("admitted", output.admit.numpy()),
        ("admitted by the lower bound", output.admit_lower.numpy()),
        ("softmax of at least 0.8", (output.logits.softmax(1).amax(1) >= 0.8).numpy()),
    ):
        scores = noted["scores"][name]
        assert scores["admitted"] == pytest.approx(admit.mean())
        assert scores["accuracy"] == (pytest.approx(right[admit].mean()) if admit.any() else None)
    assert 0.1 < noted["scores"]["admitted"]["admitted"] < 1
    fit = dict(rows(300))
    assert set(loaded.head.support_texts) < set(fit)
    numbered = list(fit)
    assert [numbered[int(one)] for one in loaded.head.support_ids] == loaded.head.support_texts
    # what the card says can be run as it is
    card = (out / "README.md").read_text("utf-8")
    scores = noted["scores"]["admitted"]
    assert f"| admitted | {scores['accuracy']:.4f} | {scores['admitted']:.4f} |" in card
    exec(code_of(card), {})
    assert "'reason'" in capsys.readouterr().out
    page = (out / "report.html").read_text("utf-8")
    assert page.count("<svg") == 3
    assert f"{scores['admitted']:.3f}" in page
    lines = result.summary().splitlines()
    assert lines[0].startswith("least similarity ")
    assert lines[-1] == "saved in out"


def test_a_verifier_of_completions_is_what_was_measured(
    llama_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    test = completions(60, seed=1)
    columns = ["prompt", "completion", "is_good"]
    # as people write it
    lines = [(prompt, answer, "yes" if good else "No") for prompt, answer, good in test]
    given = write(tmp_path / "test.csv", columns, lines)
    result = fitted(
        "out", llama_folder, completions_file(tmp_path), test_data=given, dtype="bfloat16"
    )
    model = hf.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16)
    words = hf.AutoTokenizer.from_pretrained(llama_folder)
    verifier = SdmVerifier.from_pretrained("out", model, words)
    verdicts = verifier.verify([row[0] for row in test], [row[1] for row in test])
    admit = np.array([one.admit for one in verdicts])
    good = np.array([row[2] for row in test])
    found = result.scores
    assert found["all"] == {"accuracy": pytest.approx(good.mean()), "admitted": 1.0}
    assert found["admitted"]["admitted"] == pytest.approx(admit.mean())
    assert found["admitted"]["accuracy"] == pytest.approx(good[admit].mean())
    assert 0 < admit.sum() < 60
    card = Path("out/README.md").read_text("utf-8")
    assert "selective-generation" in card
    # an untrained model says anything, but says it
    exec(code_of(card).replace('"a prompt"', '"w1 w2"'), {})
    assert re.match("(True|False) ", capsys.readouterr().out)


def test_model_and_head_in_one_folder_need_nothing_else(bert_folder, tmp_path):
    out = tmp_path / "out"
    fitted(out, bert_folder, texts_file(tmp_path), save_model=True)
    classify = hf.pipeline("sdm-text-classification", model=str(out))
    text, label = rows(1)[0]
    found = classify(text)
    assert found["label"] == label
    assert len(found["exemplars"]) == 3
    # the report finds the model there, too
    page = report_folder(str(out), texts_file(tmp_path, 30, seed=2), use_cpu=True)
    assert "On 30 rows of rows.csv" in page.read_text("utf-8")


def test_labels_are_named_as_the_model_names_them(tmp_path, bert_folder):
    names = {0: "cook", 1: "balance", 2: "alarm"}
    config = hf.AutoConfig.from_pretrained(bert_folder, id2label=names)
    hf.BertForSequenceClassification(config).save_pretrained(tmp_path / "named")
    hf.AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path / "named")
    data = texts_file(tmp_path, 90)
    head = fitted(tmp_path / "by name", tmp_path / "named", data, epochs=1).head
    assert dict(head.config.id2label) == names
    numbered = [(text, INTENTS.index(label)) for text, label in rows(90)]
    data = write(tmp_path / "numbers.csv", ["text", "label"], numbered)
    head = fitted(tmp_path / "by number", tmp_path / "named", data, epochs=1).head
    assert dict(head.config.id2label) == names
    # a model without names leaves the numbers alone
    head = fitted(tmp_path / "plain", bert_folder, data, epochs=1).head
    assert dict(head.config.id2label) == {0: "0", 1: "1", 2: "2"}


def test_a_run_that_broke_off_goes_on_to_the_same_files(bert_folder, tmp_path, monkeypatch):
    data = texts_file(tmp_path)
    (tmp_path / "whole").mkdir()
    fitted(tmp_path / "whole" / "out", bert_folder, data)
    out = tmp_path / "cut" / "out"
    looks, look = [], sdm_training.SplitTraining._look

    def stop(self, loss):
        looks.append(loss)
        if len(looks) == 9:
            raise KeyboardInterrupt
        look(self, loss)

    monkeypatch.setattr("hf_softext.heads.sdm.fit._SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(sdm_training.SplitTraining, "_look", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(out, bert_folder, data)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"unfinished run with another alpha, seed"):
        fitted(out, bert_folder, data, alpha=0.9, seed=1)
    read = []
    monkeypatch.setattr(
        "hf_softext.heads.features.pooled_features", lambda *given: read.append(given)
    )
    looks.clear()
    with monkeypatch.context() as patch:
        patch.setattr(sdm_training.SplitTraining, "_look", lambda *a: (looks.append(1), look(*a)))
        fitted(out, bert_folder, data)
    # no text was read again, and the eight epochs that were done were not repeated
    assert read == []
    assert len(looks) == 4
    assert contents(out) == contents(tmp_path / "whole" / "out")
    assert not out.with_name("out.partial").exists()


def test_two_processes_share_the_texts_and_find_the_same(bert_folder, tmp_path):
    data = texts_file(tmp_path)
    alone = fitted(tmp_path / "alone", bert_folder, data)
    given = {"model": bert_folder, "data": data, "output_dir": tmp_path / "both", **QUICK}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, "2", PROGRAM, *flags], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # the first process speaks
    assert done.stdout.count("saved in") == 1
    both = SdmHead.from_pretrained(tmp_path / "both")
    assert both.support_ids == alone.head.support_ids
    torch.testing.assert_close(
        both.support_exemplars, alone.head.support_exemplars, atol=1e-3, rtol=1e-3
    )
    noted = json.loads((tmp_path / "both" / "eval_results.json").read_text("utf-8"))
    assert noted["scores"]["all"] == alone.scores["all"]


BAD = {
    "no model": ({"model": None}, "model is missing"),
    "no data": ({"data": None}, "data is missing"),
    "alpha": ({"alpha": 0.5}, r"alpha=0\.5 must be above 0\.5"),
    "alpha above 1": ({"alpha": 95.0}, r"alpha=95\.0 must be above 0\.5 and at most 1"),
    "task": ({"task": "regression"}, "task='regression'"),
    "pooling": ({"pooling": "max"}, "pooling='max' must be one of"),
    "dtype": ({"dtype": "int8"}, "dtype='int8'"),
    "share": ({"held_out": 1.0}, "held_out=1.0 must be"),
    "columns": ({"text_column": "sentence"}, "the data has the columns text, label: a classif"),
    "column": ({"text_column": "s", "task": "classification"}, "text_column='s' is not a column"),
    "label": ({"label_column": "y", "task": "classification"}, "label_column='y' is not a col"),
    "prompt": ({"task": "generation"}, "prompt_column='prompt' is not a column"),
    "same": ({"test_data": "DATA"}, "every one of the 30 rows to measure on is a row of the fit"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_say_what_to_do_and_leave_nothing(name, bert_folder, tmp_path):
    change, message = BAD[name]
    data = texts_file(tmp_path, 30)
    change = {key: data if value == "DATA" else value for key, value in change.items()}
    with pytest.raises(ValueError, match=message):
        fit_verifier(
            VerifierArguments(
                **{
                    "model": str(bert_folder),
                    "data": data,
                    "output_dir": str(tmp_path / "out"),
                    **QUICK,
                    **change,
                }
            )
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


ROWS = {
    "one row": (
        ["text", "label"],
        [("w1", "a"), ("w2", "a"), ("w3", "zz"), ("w3 ", "zz")],
        r"class 'zz' \(1\) has a single distinct row",
    ),
    "one class": (["text", "label"], [("w1", "a"), ("w2", "a")], "holds 'a' throughout"),
    "lists": (["text", "label"], [("w1", 0.5), ("w2", 1.5)], "holds a regression"),
    "no label": (["text", "label"], [("w1", "a"), ("w2", "")], "row 1 of the data has no label"),
    "no text": (["text", "label"], [("w1", "a"), (" ", "b")], "row 1 of the data has no text"),
    "no rows": (["text", "label"], [], "could not be read"),
    "all good": (
        ["prompt", "completion", "is_good"],
        [("w1", "w2", True), ("w3", "w4", True)],
        "is_good is True throughout",
    ),
    "no flag": (
        ["prompt", "completion", "is_good"],
        [("w1", "w2", "maybe"), ("w3", "w4", "no")],
        "good_column='is_good' holds 'maybe' in row 0",
    ),
    "silence": (
        ["prompt", "completion", "is_good"],
        [("w1", "w2", 1), ("w3", "", 0)],
        "completion 1 is empty, and the tokenizer has no eos_token",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_will_not_do_are_named(name, bert_folder, llama_folder, tmp_path):
    columns, lines, message = ROWS[name]
    data = write(tmp_path / "bad.csv", columns, lines)
    model = bert_folder if columns[0] == "text" else llama_folder
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path / "out", model, data, held_out=0.0)
    # nor is anything in the way of the command that is put right
    assert not (tmp_path / "out.partial").exists()


def test_what_is_there_and_what_is_not_is_said(bert_folder, tmp_path, monkeypatch):
    data = texts_file(tmp_path, 30)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        fitted(tmp_path / "out", bert_folder, "nowhere.csv")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="output_dir="):
        fitted(tmp_path / "out", bert_folder, data)
    config = hf.AutoConfig.from_pretrained(bert_folder)
    config.architectures = ["Unheard"]
    config.save_pretrained(tmp_path / "unheard")
    with pytest.raises(ValueError, match="is a Unheard, which is not a model class"):
        fitted(tmp_path / "other", tmp_path / "unheard", data)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"hf-softext\[plots\]"):
        fitted(tmp_path / "other", bert_folder, data, report=True)


def test_the_yaml_file_of_the_repository_is_understood(tmp_path):
    config = Path(PROGRAM).parent / "configs" / "verifier.yaml"
    args = parse_arguments(VerifierArguments, [str(config), "--alpha", "0.9", "--out", "new"])
    args.check()
    assert (args.alpha, args.output_dir, args.report) == (0.9, "new", True)
