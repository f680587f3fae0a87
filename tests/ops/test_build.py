"""Compiling once a machine: no compiler, a broken one, a broken file, two processes."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hf_softext.ops import build

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler"
)
ANSWER = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "answer.cpp"
    path.write_text(ANSWER)
    return path


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_compiler_imports_work_and_the_call_says_what_to_do(tmp_path):
    printed = run(
        "import torch\n"
        "from hf_softext.ops import two_pass_softmax\n"
        "try:\n    two_pass_softmax(torch.zeros(2, 2))\n"
        "except ImportError as error:\n    print(error)\n",
        PATH=str(tmp_path),
        CXX="",
        SOFTEXT_CACHE=str(tmp_path / "cache"),
    )
    assert "needs a C++ compiler, and none of c++, g++, clang++ was found" in printed
    assert "apt install g++" in printed
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_is_not_there(source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(ImportError, match="CXX='no-such-compiler' was not found"):
        build.load(source)


def test_a_compiler_that_is_no_command(source, monkeypatch):
    monkeypatch.setenv("CXX", "'")
    with pytest.raises(ImportError, match=r'CXX="\'" \(No closing quotation\): quote it'):
        build.load(source)


@pytest.mark.skipif(not shutil.which("true"), reason="there is no true")
def test_a_compiler_that_makes_nothing(source, monkeypatch):
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(RuntimeError, match=r"true -std.* made no library of answer.cpp"):
        build.load(source)
    assert list(build.cache_folder().iterdir()) == []


@needs_compiler
def test_a_file_is_loaded_and_on_the_disk_before_it_gets_its_name(source, monkeypatch):
    done = []
    sync, cdll, replace = os.fsync, ctypes.CDLL, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("sync"), sync(fd))[1])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (done.append("load"), cdll(name))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (done.append("name"), replace(self, target))[1]
    )
    assert build.load(source).answer() == 42
    assert done == ["load", "sync", "name"]


@needs_compiler
def test_what_a_killed_build_left_is_removed(source):
    folder = build.cache_folder()
    folder.mkdir()
    old, young, other = (folder / f"{name}.so" for name in ("answer.old", "answer.new", "else.old"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    build.load(source)
    assert not old.exists()
    assert young.exists()
    assert other.exists()


@needs_compiler
def test_compiles_once(source, monkeypatch):
    assert build.load(source).answer() == 42
    (library,) = build.cache_folder().iterdir()
    written = library.stat()
    monkeypatch.setenv("PATH", "")
    # no compiler is needed any more
    assert build.load(source).answer() == 42
    assert library.stat().st_mtime_ns == written.st_mtime_ns
    assert stat.S_IMODE(build.cache_folder().stat().st_mode) == 0o700


@needs_compiler
def test_another_source_is_another_file(source):
    build.load(source)
    source.write_text(ANSWER.replace("42", "43"))
    assert build.load(source).answer() == 43
    assert len(list(build.cache_folder().iterdir())) == 2


@needs_compiler
def test_a_file_that_cannot_be_loaded_is_built_again(source):
    broken = build.cache_folder() / f"answer-{build._key(source)}.so"
    broken.parent.mkdir()
    broken.write_bytes(b"cut off")
    assert build.load(source).answer() == 42


@needs_compiler
def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(source):
    source.write_text("int answer( { }")
    with pytest.raises(RuntimeError, match=r"could not compile answer.cpp(?s:.*)error"):
        build.load(source)
    assert list(build.cache_folder().iterdir()) == []


@needs_compiler
def test_a_folder_that_cannot_be_written(source, monkeypatch):
    monkeypatch.setenv("SOFTEXT_CACHE", str(source / "below a file"))
    with pytest.raises(RuntimeError, match=r"cannot write to.*SOFTEXT_CACHE"):
        build.load(source)


@needs_compiler
def test_processes_may_build_at_once(source):
    code = (
        "import importlib.util, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('build', {build.__file__!r})\n"
        "build = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(build)\n"
        f"assert build.load(pathlib.Path({str(source)!r})).answer() == 42\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(timeout=300) for process in several] == [0, 0, 0, 0]
    (library,) = build.cache_folder().iterdir()
    assert library.suffix == ".so"


def test_unlike_machines_do_not_share_a_file(source, monkeypatch):
    key = build._key(source)
    monkeypatch.setattr(build, "_processor", lambda: ["another"])
    assert build._key(source) != key
