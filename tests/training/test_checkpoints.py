"""The folder of a run in progress: whose it is, and what is said of a finished one."""

import json
import subprocess
import sys

import pytest

from hf_softext.resume import claim
from hf_softext.training.checkpoints import check_new


def test_a_claim_without_work_goes_to_the_next_run_and_one_with_work_stays(tmp_path):
    folder = tmp_path / "run"
    claim(folder, {"loss": "gce"})
    # claims below it, and what was never finished, are no work
    claim(folder / "inner", {"loss": "gce"})
    (folder / "inner" / "shard.tmp").touch()
    claim(folder, {"loss": "ce"})
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="unfinished run with another loss: repeat"):
        claim(folder, {"loss": "gce"})
    claim(folder, {"loss": "ce"})
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        claim(other, {"loss": "ce"})


@pytest.mark.parametrize("content", [b"", b'{"loss": "g', b"[1]", b"\xff"], ids=repr)
def test_a_damaged_claim_protects_work_and_nothing_else(content, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "request.json").write_bytes(content)
    claim(folder, {"loss": "ce"})
    (folder / "request.json").write_bytes(content)
    (folder / "model.safetensors").touch()
    with pytest.raises(ValueError, match="unfinished run with another loss: repeat"):
        claim(folder, {"loss": "ce"})


def test_a_claim_of_a_run_that_goes_on_stays(tmp_path):
    folder = tmp_path / "run"
    say = (
        "import sys, pathlib, hf_softext.resume as r; r.claim(pathlib.Path(sys.argv[1]), {'a': 1})"
    )
    say += "; print('claimed', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", say, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline().strip() == b"claimed"
        with pytest.raises(ValueError, match=f"another a that goes on, in process {other.pid}"):
            claim(folder, {"a": 2})
        # processes of one run ask for the same
        claim(folder, {"a": 1})
        other.stdin.close()
    claim(folder, {"a": 2})
    assert json.loads((folder / "request.json").read_text(encoding="utf-8"))["a"] == 2


def test_a_finished_run_is_told_from_a_folder_of_another_kind(tmp_path):
    check_new(tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists: remove it or"):
        check_new(tmp_path)
    (tmp_path / "README.md").write_text("tags:\n- hf_softext\n", encoding="utf-8")
    with pytest.raises(FileExistsError, match="exists: it is finished; remove it or"):
        check_new(tmp_path)
