"""Texts and token ids to sequences: nothing lost, nothing padded, the same draw for a seed."""

from itertools import chain

import pytest
import torch
import transformers as hf
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hf_softext.quantization.baq.sequences import calibration_sequences, fingerprint
from tests.quantization.calibration_models import build

WORDS = [f"w{index}" for index in range(40)]


def tokenizer_of(begin: bool = False, single: bool = False) -> hf.PreTrainedTokenizerFast:
    """A word a token; with the beginning of a Llama's or the frame of a BERT's text."""
    special = ["[PAD]", "[BOS]", "[EOS]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel({**vocabulary, "a": 45}, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single="[BOS] $A", special_tokens=[("[BOS]", 1)]
        )
    if single:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        eos_token=None if single else "[EOS]",
        model_max_length=64,
    )


def texts(count=30, length=7):
    return [" ".join(WORDS[(row + at) % 40] for at in range(length)) for row in range(count)]


def rows(sequences):
    assert all(ids.dtype == torch.int64 and ids.dim() == 2 and len(ids) == 1 for ids in sequences)
    return [ids[0].tolist() for ids in sequences]


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(scope="module")
def bert():
    return build("bert")


def test_running_text_is_cut_into_windows_that_do_not_overlap(llama):
    tokenizer = tokenizer_of()
    documents = texts()
    found = rows(calibration_sequences(documents, tokenizer, llama, 100, 16, seed=3))
    assert len(found) == 30 * 8 // 16
    ids = [[*tokenizer(text)["input_ids"], 2] for text in documents]
    joined = [token for row in found for token in row]
    # from some document on and around
    streams = [[*chain(*ids[at:], *ids[:at])] for at in range(30)]
    assert joined in streams
    few = rows(calibration_sequences(documents, tokenizer, llama, 4, 16, seed=3))
    assert len(few) == len({tuple(row) for row in few}) == 4
    assert few == rows(calibration_sequences(documents, tokenizer, llama, 4, 16, seed=3))
    assert few != rows(calibration_sequences(documents, tokenizer, llama, 4, 16, seed=4))


def test_windows_begin_as_the_tokenizer_begins_a_text(llama):
    found = rows(calibration_sequences(texts(), tokenizer_of(begin=True), llama, 5, 16, 0))
    assert all(row[0] == 1 and 1 not in row[1:] and len(row) == 16 for row in found)


def test_less_than_a_window_is_used_and_nothing_is_refused(llama):
    (only,) = rows(calibration_sequences(["w1 w2 w3"], tokenizer_of(), llama, 5, 16, 0))
    assert only == [6, 7, 8, 2]
    for nothing in ([""], ["  ", "\n"]):
        with pytest.raises(ValueError, match="no tokens to calibrate with"):
            calibration_sequences(nothing, tokenizer_of(), llama, 5, 16, 0)


def test_a_large_text_is_not_read_to_its_end(llama):
    read = []

    class Counting(hf.PreTrainedTokenizerFast):
        def __call__(self, text, **kwargs):
            read.extend(text if isinstance(text, list) else [])
            return super().__call__(text, **kwargs)

    tokenizer = tokenizer_of()
    tokenizer.__class__ = Counting
    calibration_sequences(texts(5000), tokenizer, llama, 4, 16, 0)
    assert 0 < len(read) < 200


def test_other_models_get_texts_one_by_one(bert, tmp_path):
    path = tmp_path / "lines.txt"
    lines = texts(12, length=9)
    path.write_text("\n".join([*lines[:6], "", *lines[6:]]), encoding="utf-8")
    tokenizer = tokenizer_of(single=True)
    found = rows(calibration_sequences(path, tokenizer, bert, 50, 8, 0))
    expected = [tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in lines]
    assert sorted(found) == sorted(expected)
    assert all(row[0] == 3 and row[-1] == 4 and len(row) == 8 for row in found)
    assert len(calibration_sequences(str(path), tokenizer, bert, 5, 8, 0)) == 5


def test_how_many_sequences_there_are_by_default(llama, bert):
    long = " ".join(texts(200, length=40))
    windows = calibration_sequences([long], tokenizer_of(), llama, None, 16, 0)
    assert [ids.shape[1] for ids in windows] == [16] * 128
    lines = texts(2500)
    found = calibration_sequences(lines, tokenizer_of(single=True), bert, None, 512, 0)
    assert len(found) == 2048
    # no more tokens than 128 sequences have
    found = calibration_sequences(lines, tokenizer_of(single=True), bert, None, 8, 0)
    assert sum(ids.shape[1] for ids in found) == 128 * 8
    ids = [[1, 2, 3]] * 3000
    assert len(calibration_sequences(ids, None, bert, None, 512, 0)) == 2048


def test_a_file_and_a_folder_and_a_table_are_running_text(llama, tmp_path):
    (tmp_path / "one.txt").write_text(" ".join(WORDS), encoding="utf-8")
    table = Dataset.from_dict({"text": [" ".join(WORDS)], "other": [1]})
    for dataset in (tmp_path / "one.txt", str(tmp_path), table, table.to_iterable_dataset()):
        found = rows(calibration_sequences(dataset, tokenizer_of(), llama, 9, 20, 0))
        assert [len(row) for row in found] == [20, 20]
        assert [*chain(*found)] == list(range(5, 45))
    with pytest.raises(FileNotFoundError, match=r"dataset='.*missing.txt'"):
        calibration_sequences(str(tmp_path / "missing.txt"), tokenizer_of(), llama, 9, 20, 0)


@pytest.mark.parametrize("form", ["lists", "tensor", "mappings", "batch", "dataset", "streamed"])
def test_token_ids_lose_their_padding_and_nothing_else(llama, form):
    ids = [[0, 0, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 0, 0, 0]]
    mask = [[0, 0, 1, 1, 1], [1] * 5, [1, 1, 0, 0, 0]]
    both = {"input_ids": ids, "attention_mask": mask}
    table = Dataset.from_dict({**both, "labels": ids})
    given = {
        "lists": [[5, 6, 7], ids[1], torch.tensor([13, 14])],
        "tensor": torch.tensor(ids),
        "mappings": [
            {"input_ids": torch.tensor([row]), "attention_mask": torch.tensor([real])}
            for row, real in zip(ids, mask, strict=True)
        ],
        "batch": hf.BatchEncoding({key: torch.tensor(value) for key, value in both.items()}),
        "dataset": table,
        "streamed": table.to_iterable_dataset(),
    }[form]
    found = rows(calibration_sequences(given, None, llama, 9, 64, 0))
    assert found == (ids if form == "tensor" else [[5, 6, 7], ids[1], [13, 14]])


def test_long_token_ids_become_several_and_many_are_drawn_from(llama):
    ids = torch.arange(3, 43)
    found = rows(calibration_sequences(ids, None, llama, 9, 16, 0))
    assert found == [ids[:16].tolist(), ids[16:32].tolist(), ids[32:].tolist()]
    many = [[3 + at, 4] for at in range(40)]
    drawn = rows(calibration_sequences(many, None, llama, 7, 16, 0))
    assert len(drawn) == 7
    # in their order
    assert drawn == sorted(drawn)
    assert all(row in many for row in drawn)


def test_sequences_are_no_longer_than_the_model_takes():
    ids = torch.randint(3, 50, (1, 200))
    roberta = hf.RobertaModel(
        hf.RobertaConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=50,
            max_position_embeddings=34,
            pad_token_id=1,
        )
    ).eval()
    for model, limit in ((build("gpt2"), 64), (build("opt"), 64), (roberta, 32)):
        found = calibration_sequences(ids, None, model, 9, 2048, 0)
        assert found[0].shape == (1, limit)
        model(found[0])


def test_ids_of_another_vocabulary_are_refused(llama):
    with pytest.raises(ValueError, match=r"sequence 1 has the token id 50, .* 0 to 49"):
        calibration_sequences([[3, 4], [5, 50]], None, llama, 9, 16, 0)
    with pytest.raises(ValueError, match="token id -1"):
        calibration_sequences([[3, -1]], None, llama, 9, 16, 0)


def test_a_name_is_a_tokenizer_and_the_model_may_have_one(llama, tmp_path, monkeypatch):
    tokenizer_of().save_pretrained(tmp_path)
    expected = rows(calibration_sequences(texts(), tokenizer_of(), llama, 9, 16, 0))
    assert rows(calibration_sequences(texts(), str(tmp_path), llama, 9, 16, 0)) == expected
    monkeypatch.setattr(llama.config, "_name_or_path", str(tmp_path))
    assert rows(calibration_sequences(texts(), None, llama, 9, 16, 0)) == expected
    monkeypatch.setattr(llama.config, "_name_or_path", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="tokenizer=None: none could be loaded from"):
        calibration_sequences(texts(), None, llama, 9, 16, 0)
    monkeypatch.setattr(llama.config, "_name_or_path", "")
    with pytest.raises(ValueError, match="tokenizer is missing"):
        calibration_sequences(texts(), None, llama, 9, 16, 0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "dataset is missing"),
        (3, "of type int cannot be read"),
        ([], "of type list cannot be read"),
        (["text", [3]], "of type list cannot be read"),
        ([[], []], "no tokens to calibrate with"),
        ([None], "token ids that are no whole numbers"),
        ([[10**30]], "token ids that are no whole numbers"),
        ([[True, False]], "whole numbers"),
        ([{"input_ids": [5, 6], "attention_mask": [1]}], "of different shapes"),
        ([{"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}], "with zeros between ones"),
        (torch.zeros(2, 3), "whole numbers"),
        (torch.zeros(2, 3, 4, dtype=torch.long), "whole numbers"),
        (Dataset.from_dict({"body": ["w1"]}), 'no column "text" or "input_ids", but body'),
        (DatasetDict({"train": Dataset.from_dict({"text": ["w1"]})}), r"several splits \(train\)"),
    ],
)
def test_what_cannot_be_read_is_told(llama, dataset, message):
    with pytest.raises(ValueError, match=message):
        calibration_sequences(dataset, tokenizer_of(), llama, 9, 16, 0)


def test_what_is_no_tokenizer_is_told(llama):
    with pytest.raises(ValueError, match="tokenizer=5: give a tokenizer"):
        calibration_sequences(texts(), 5, llama, 9, 16, 0)


def test_fingerprint_tells_sequences_apart():
    one = [torch.tensor([[3, 4, 5]]), torch.tensor([[6]])]
    known = fingerprint(one)
    assert (known["sequences"], known["tokens"], len(known["sha256"])) == (2, 4, 64)
    assert known == fingerprint([ids.clone() for ids in one])
    others = [[torch.tensor([[3, 4]]), torch.tensor([[5, 6]])], one[::-1], one[:1]]
    assert len({fingerprint(other)["sha256"] for other in (one, *others)}) == 4
