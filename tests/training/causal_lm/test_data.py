"""Text to windows: bytes without loss, an honest split, passkeys where they are said to be."""

import random

import pytest
import torch
import transformers as hf
from datasets import Dataset

from hf_softext.training.causal_lm.byte_tokenizer import END, byte_tokenizer
from hf_softext.training.causal_lm.data import Windows, WithPasskeys, split_stream, token_stream
from hf_softext.training.causal_lm.passkey import DIGITS, PasskeyTask

STRANGE = "Où \x00\x7f Ā\n\t  漢字 👍 don't  \r\n"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def occurrences(ids, part):
    rows = ids.unfold(0, len(part), 1)
    return (rows == torch.as_tensor(part)).all(dim=1).nonzero().flatten().tolist()


def test_bytes_are_kept_and_load_without_this_package(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = hf.AutoTokenizer.from_pretrained(tmp_path)
    for text in (STRANGE, "", "  two  spaces", "".join(map(chr, range(0x250)))):
        for one in (tokenizer, loaded):
            ids = one(text)["input_ids"]
            assert ids == list(text.encode())
            assert one.decode(ids) == text
    assert len(loaded) == 257
    assert loaded.eos_token_id == loaded.pad_token_id == 256
    assert loaded.convert_ids_to_tokens(256) == END


def test_stream_ends_every_document_and_the_last_part_is_held_out(tokenizer):
    documents = Dataset.from_dict({"text": ["ab", STRANGE, "xyz" * 10]})
    stream = token_stream(documents, tokenizer)
    expected = [*b"ab", 256, *STRANGE.encode(), 256, *b"xyz" * 10, 256]
    assert stream.tolist() == expected
    train, test = split_stream(stream, 0.25, 8)
    assert [*train.tolist(), *test.tolist()] == expected
    assert len(test) == len(expected) // 4
    windows = Windows(train, 8)
    assert windows.rows.flatten().tolist() == expected[: len(windows) * 8]
    assert len(train) - 8 < len(windows) * 8 <= len(train)
    assert windows[1]["labels"].tolist() == [-100, *expected[9:16]]


@pytest.mark.parametrize(("share", "what"), [(0.1, "held out"), (0.9, "to train on")])
def test_too_little_text_for_a_window_is_refused(share, what):
    with pytest.raises(ValueError, match=rf"held_out={share} leaves 10 {what}.*length=11"):
        split_stream(torch.zeros(100, dtype=torch.int32), share, 11)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_passkey_lies_at_its_depth_and_only_there(tokenizer, depth):
    task = PasskeyTask.of(tokenizer)
    text = torch.randint(97, 123, (200,))
    window = task.window(text, random.Random(3), depth)
    ids, labels = window["input_ids"], window["labels"]
    number = ids[-DIGITS:]
    assert len(ids) == len(labels) == 200
    assert all(48 <= digit < 58 for digit in number.tolist())
    assert labels.tolist() == [-100] * (200 - DIGITS) + number.tolist()
    room = 200 - len(tokenizer("\nPass key: 12345\n\nPass key: 12345")["input_ids"])
    start = round(depth * room)
    assert occurrences(ids, number) == [start + len(task.cue), 200 - DIGITS]
    assert occurrences(ids, task.cue) == [start, 200 - DIGITS - len(task.cue)]
    # what is left is the text in its order
    needle = len(task.cue) + DIGITS + len(task.stop)
    rest = torch.cat([ids[:start], ids[start + needle : start + needle + room - start]])
    assert torch.equal(rest, text[:room])


def test_a_number_that_the_text_holds_is_not_used(tokenizer):
    task = PasskeyTask.of(tokenizer)
    first = task.window(torch.full((80,), 97), random.Random(7))["input_ids"][-DIGITS:]
    text = torch.cat([first, torch.full((75,), 97)])
    assert not torch.equal(task.window(text, random.Random(7))["input_ids"][-DIGITS:], first)


def test_shortest_passkey_window_fits_and_a_shorter_one_is_refused(tokenizer):
    task = PasskeyTask.of(tokenizer)
    assert len(task.window(torch.full((task.shortest,), 97), random.Random(0))["labels"]) == 34
    with pytest.raises(ValueError, match="33 tokens is too short for a passkey, which takes 34"):
        task.window(torch.full((33,), 97), random.Random(0))


def test_share_of_passkey_windows_is_kept_and_depends_on_the_index_alone(tokenizer):
    windows = Windows(torch.randint(97, 123, (40 * 500,), dtype=torch.int32), 40)
    mixed = WithPasskeys(windows, PasskeyTask.of(tokenizer), 0.3, seed=5)
    again = WithPasskeys(windows, PasskeyTask.of(tokenizer), 0.3, seed=5)
    hides = []
    for index in reversed(range(len(mixed))):
        row = mixed[index]
        assert all(torch.equal(row[key], again[index][key]) for key in row)
        hides.append((row["labels"] != -100).sum().item() == DIGITS)
        if not hides[-1]:
            assert torch.equal(row["input_ids"], windows.rows[index].long())
    assert 0.2 < sum(hides) / 500 < 0.4
