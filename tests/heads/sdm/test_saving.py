"""A head's files: bit by bit, in another process, and what is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_softext.heads.sdm import SdmHead, saving
from tests.heads.sdm.cases import head, rows, same
from tests.heads.sdm.test_head import RESCALING


@pytest.mark.parametrize("settings", [{}, RESCALING], ids=["sdm_hr", "universal"])
def test_loaded_heads_are_the_saved_ones(tmp_path, settings):
    # a line separator, a quote, a line end, half of a surrogate pair
    texts = ["".join(map(chr, (955, 8232, 34, 10, 0xD800, row + 33))) for row in range(400)]
    found = head(**settings, texts=texts, id2label={0: "a"}, alpha=0.85)
    found.add_support(*rows(5, seed=4), ids=list("vwxyz"))
    found.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "sdm_config.json",
        "sdm_head.safetensors",
        "sdm_support.jsonl",
        "README.md",
    }
    loaded = SdmHead.from_pretrained(tmp_path)
    assert same(found, loaded)
    features, _ = rows(100, seed=5)
    before, after = found(features), loaded(features)
    assert before.reason == after.reason
    assert found.neighbours(before) == loaded.neighbours(after)
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
    # and they can be calibrated on
    assert torch.equal(found.recalibrate(0.8).thresholds, loaded.recalibrate(0.8).thresholds)


def test_a_fresh_process_gives_the_same_bits(tmp_path):
    found = head()
    found.save_pretrained(tmp_path)
    features, _ = rows(50, seed=6)
    save_file({"features": features}, tmp_path / "in.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(1)\n"
        "from hf_softext.heads.sdm import SdmHead; folder = sys.argv[1]\n"
        "head = SdmHead.from_pretrained(folder)\n"
        "output = head(load_file(folder + '/in.safetensors')['features'])\n"
        "kept = {name: value.clone() for name, value in output.items() if torch.is_tensor(value)}\n"
        "save_file(kept, folder + '/out.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
    output = found(features)
    for name, value in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(value, output[name]), name


def test_files_that_do_not_fit_are_refused(tmp_path):
    found = head()
    good = tmp_path / "good"
    found.save_pretrained(good)

    def broken(match, change, error=ValueError):
        folder = tmp_path / "broken"
        shutil.copytree(good, folder, dirs_exist_ok=True)
        change(folder)
        with pytest.raises(error, match=match):
            SdmHead.from_pretrained(folder)
        shutil.rmtree(folder)

    def settings(**changes):
        def change(folder):
            path = folder / "sdm_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    def tensors(**changes):
        def change(folder):
            path = folder / "sdm_head.safetensors"
            held = {name: value.clone() for name, value in load_file(path).items()}
            merged = {**held, **changes}
            save_file({name: value for name, value in merged.items() if value is not None}, path)

        return change

    def flipped(name, place, bit=1):
        def change(folder):
            data = bytearray((folder / name).read_bytes())
            data[place] ^= bit
            (folder / name).write_bytes(data)

        return change

    # as a process that was killed between two files leaves them
    found.recalibrate(0.7)
    found.save_pretrained(tmp_path / "other")

    def of_another(name):
        return lambda folder: shutil.copy(tmp_path / "other" / name, folder / name)

    def written(name, data):
        return lambda folder: (folder / name).write_bytes(data)

    def shorter(folder):
        path = folder / "sdm_support.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    broken("has 199 rows", shorter)
    broken("format=7", settings(format=7))
    broken("auto_map: an SDM head has no such setting", settings(auto_map={}))
    broken("alpha=0.3", settings(alpha=0.3))
    broken(r"thresholds of shape \(2,\)", tensors(thresholds=torch.ones(2)))
    broken("missing .'thresholds'", tensors(thresholds=None))
    broken("missing .'rescaling_weight'", settings(estimator="universal"))
    broken("unknown .'more'", tensors(more=torch.ones(1)))
    config, weights, support = "sdm_config.json", "sdm_head.safetensors", "sdm_support.jsonl"
    for change in (
        flipped(weights, -1),
        flipped(weights, -3000),
        flipped(support, 9),
        tensors(thresholds=torch.zeros(3)),
        settings(max_q=7),
        settings(report={}),
        of_another(weights),
        of_another(config),
    ):
        broken("are not as one call of save_pretrained wrote them", change)
    for change in (
        flipped(weights, 0),
        flipped(support, 0, bit=128),
        written(config, b"{"),
        written(config, b"3"),
        written(support, b"3\n"),
        written(weights, b""),
    ):
        broken("broken is damaged", change)
    half = {"support_exemplars": found.support_exemplars.half()}
    broken(r"torch.float16 in .* must be \(200, 8\) and torch.float32", tensors(**half))
    broken(r"must be \(4611686018427387904, 10\)", settings(exemplar_dim=2**62))
    broken("lacks num_features", settings(num_features=None))
    broken("has no sdm_config.json", lambda f: (f / "sdm_config.json").unlink(), error=OSError)


def test_a_readme_of_somebody_else_stays(tmp_path):
    found = head()
    (tmp_path / "README.md").write_text("mine")
    found.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    found.save_pretrained(tmp_path / "new")
    text = (tmp_path / "new/README.md").read_text()
    assert "import hf_softext" in text or "from hf_softext" in text
    assert f"| calibration rows | {len(found.calibration_labels)} |" in text


def test_pushing_uploads_the_files(monkeypatch):
    calls = {}

    class Hub:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            calls["repo"] = (repo_id, private, exist_ok)
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, repo_id, folder_path, **options):
            calls["upload"] = (repo_id, options)
            calls["head"] = SdmHead.from_pretrained(folder_path)
            return "https://commit"

    monkeypatch.setattr(saving, "HfApi", Hub)
    found = head()
    assert found.push_to_hub("mine", private=True, token="t", revision="dev") == "https://commit"
    assert calls["token"] == "t"
    assert calls["repo"] == ("mine", True, True)
    options = {"revision": "dev", "commit_message": "Upload an SDM head"}
    assert calls["upload"] == ("me/mine", options)
    assert same(calls["head"], found)
