"""The Mahalanobis detector behind models, and its files."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_softext.heads.features import extract_features
from hf_softext.heads.mahalanobis import MahalanobisDetector
from tests.heads.test_mahalanobis import draw
from tests.heads.tiny import WORDS, build, tokenizer


def texts(count, seed, low, high):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(low, high, (length,), generator=generator))
        for length in lengths
    ]


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_behind_a_model(name, tmp_path):
    model, words = build(name).train(), tokenizer()
    if name == "roberta":
        model.config.label2id = {"low": 0, "high": 1}

    # two kinds of texts, of words of their own; a third kind is out of distribution
    def rows(seed):
        low, high = texts(40, seed, 0, 6), texts(40, seed + 1, 30, 36)
        return Dataset.from_dict({"text": low + high, "label": ["low"] * 40 + ["high"] * 40})

    detector = MahalanobisDetector(layers=(1, -1), shrinkage="ledoit_wolf")
    options = {"progress": False, "batch_size": 16, "cache_dir": tmp_path / "cache"}
    detector.fit(model, words, rows(0), **options)
    features = extract_features(model, words, rows(0), pooling="mean", layers=(1, -1), **options)
    again = MahalanobisDetector((1, -1), shrinkage="ledoit_wolf")
    # names that the model does not know are numbered in their order
    named = {0: "low", 1: "high"} if name == "roberta" else {0: "high", 1: "low"}
    assert detector.id2label == named
    again.fit_features(
        list(features.chunk(2, 1)), [int(named[1] == "low")] * 40 + [int(named[1] == "high")] * 40
    )
    inside = detector.score_dataset(model, words, rows(10), **options)
    assert torch.equal(
        inside,
        again.score_features(
            extract_features(model, words, rows(10), pooling="mean", layers=(1, -1), **options)
        ),
    )
    detector.calibrate(inside)
    strange = texts(40, 5, 60, 90)
    outside = detector.score_dataset(model, words, strange, progress=False)
    assert detector.is_ood(outside).float().mean() > 0.5
    assert detector.is_ood(detector.score_dataset(model, words, rows(20), **options)).sum() < 16

    # a batch is what the data set is, and the model is in training mode before and after
    words.padding_side = "left"
    batch = words(strange, padding=True, return_tensors="pt")
    torch.testing.assert_close(detector.score(model, batch), outside, rtol=1e-4, atol=1e-4)
    assert model.training
    # a small step raises the score of every row by every layer
    detector.epsilon = 1e-4
    moved = detector.score(model, batch)
    assert (moved > outside).all()
    assert (moved - outside).abs().max() < outside.abs().max() / 10
    table = detector.score_dataset(model, words, strange, progress=False, batch_size=7)
    torch.testing.assert_close(table, moved, rtol=1e-3, atol=1e-3)

    detector.save_pretrained(tmp_path / "saved")
    loaded = MahalanobisDetector.from_pretrained(tmp_path / "saved")
    assert (loaded.layers, loaded.pooling, loaded.epsilon) == ((1, -1), "mean", 1e-4)
    assert loaded.id2label == named
    # files of before say nothing of names
    note = tmp_path / "saved" / "mahalanobis_config.json"
    kept = json.loads(note.read_text("utf-8"))
    assert kept.pop("id2label") == {str(number): one for number, one in named.items()}
    note.write_text(json.dumps(kept), "utf-8")
    assert MahalanobisDetector.from_pretrained(tmp_path / "saved").id2label == {}
    assert torch.equal(loaded.score(model, batch), detector.score(model, batch))
    assert torch.equal(loaded.is_ood(moved), detector.is_ood(moved))
    assert loaded.backbone == detector.backbone
    # a process that is sent the detector looks at the model anew
    sent = pickle.loads(pickle.dumps(detector))
    assert torch.equal(sent.score(model, batch), detector.score(model, batch))
    with pytest.raises(ValueError, match="another digest"):
        detector.score(model.bfloat16(), batch)
    model.float()
    with torch.no_grad():
        next(model.base_model.parameters()).mul_(2)
    for call in (
        lambda: loaded.score(model.base_model, batch),
        lambda: loaded.score_dataset(model.base_model, words, strange, progress=False),
    ):
        with pytest.raises(ValueError, match="another digest"):
            call()


def test_files(tmp_path, monkeypatch):
    features, labels = draw()
    detector = MahalanobisDetector().fit_features(features, labels)
    with pytest.raises(FileNotFoundError, match="no MahalanobisDetector was saved there"):
        MahalanobisDetector.from_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    detector.save_pretrained(tmp_path)
    names = {"README.md", "mahalanobis.safetensors", "mahalanobis_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "README.md").read_text() == "mine"
    loaded = MahalanobisDetector.from_pretrained(tmp_path)
    assert torch.equal(loaded.score_features(features), detector.score_features(features))

    detector.float().save_pretrained(tmp_path / "single")
    single = MahalanobisDetector.from_pretrained(tmp_path / "single").score_features(features)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, loaded.score_features(features).float())

    config = tmp_path / "mahalanobis_config.json"
    good = json.loads(config.read_text())
    for change, message in (
        ({"layers": "all"}, "layers='all', of a kind that it cannot be"),
        ({"layers": [0, 1]}, "do not fit"),
        ({"format": 2}, "has format 2"),
        ({"pooling": "max"}, "pooling='max' must be one of"),
        ({"trust_remote_code": True}, "should not have trust_remote_code"),
        ({"sha256": "0"}, "is damaged, or not of mahalanobis_config.json"),
    ):
        config.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            MahalanobisDetector.from_pretrained(tmp_path)
    for text in ("{", "[]"):
        config.write_text(text)
        with pytest.raises(ValueError, match="is not the config of a MahalanobisDetector"):
            MahalanobisDetector.from_pretrained(tmp_path)

    sent = {}

    class Hub:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            sent["private"] = private
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def file_exists(self, repo_id, name):
            return sent.get("again", False)

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return "address"

    monkeypatch.setattr("hf_softext.heads.saved_head.HfApi", Hub)
    assert detector.push_to_hub("detector", private=True, token="t") == "address"
    assert sent["private"]
    assert set(sent["me/detector"]) == names
    readme = sent["me/detector"]["README.md"].decode()
    assert "from hf_softext.heads.mahalanobis import MahalanobisDetector" in readme
    sent["again"] = True
    detector.push_to_hub("detector")
    assert set(sent["me/detector"]) == names - {"README.md"}
