"""Texts from files, folders and datasets."""

import pytest
from datasets import Dataset

from hf_softext.data import texts as texts_module
from hf_softext.data.texts import read_corpus, read_texts


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second\nline\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"body": "first"}\n{"body": " "}\n', encoding="utf-8")
    (tmp_path / "sub" / "c.txt").write_text("third", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not read", encoding="utf-8")
    assert read_corpus(str(tmp_path), "body")["text"][:] == ["first", "second\nline\n", "third"]
    with pytest.raises(ValueError, match=r"column='text' is not in a.jsonl, which has body"):
        read_corpus(str(tmp_path), "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no .txt or .jsonl file"):
        read_corpus(str(tmp_path / "empty"), "text")


def test_a_name_is_a_dataset_and_a_path_is_not(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        if name == "org/missing":
            raise ConnectionError("no network")
        return Dataset.from_dict({"body": ["one", "two"]})

    monkeypatch.setattr(texts_module, "load_dataset", load)
    assert read_corpus("org/name", "body", "small")["text"][:] == ["one", "two"]
    assert asked == [("org/name", "small", "train")]
    with pytest.raises(FileNotFoundError, match=r"data='org/missing' is neither.*no network"):
        read_corpus("org/missing", "body")
    for path in ("missing.txt", "./a/b/c", "/missing"):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            read_corpus(path, "text")
    assert len(asked) == 2


def test_a_text_file_is_one_document_or_a_line_each(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first\n\nsecond\n", encoding="utf-8")
    assert read_corpus(str(path), "text")["text"][:] == ["first\n\nsecond\n"]
    for lines in (read_corpus(str(tmp_path), "text", whole=False), read_texts(path, "text")):
        assert lines["text"][:] == ["first", "second"]
