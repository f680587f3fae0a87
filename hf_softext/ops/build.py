"""Compile a C++ file once on a machine, and load it.

The files know neither torch nor Python, so what is built depends on the source, the flags and the
processor alone, takes a second, and stays good when torch is upgraded.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

# x86 compilers know the machine by -march, the others by -mcpu
_NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
FLAGS = ("-std=c++17", "-O3", _NATIVE, "-ffp-contract=fast", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
# seconds after which an unfinished file belongs to no compiler that still runs
_STALE = 3600


def cache_folder() -> Path:
    """Where compiled files are kept: `$SOFTEXT_CACHE`, else `hf_softext` in the user's cache."""
    chosen = os.environ.get("SOFTEXT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_softext"


def load(source: Path) -> ctypes.CDLL:
    """The library made of `source`, compiled if this machine has none yet.

    Processes may build at the same time: each writes a file of its own, loads it, and renames it
    when it is on the disk. A file in the cache that the loader refuses (no library at all, one of
    another C library) is built again. One that was cut short later may pass the loader and kill
    the process: delete it.

    Args:
        source: a C++17 file that needs nothing but the standard library.

    Raises:
        ImportError: there is no compiler.
        RuntimeError: the compiler failed, with its message, or made no library; or the folder
            cannot be written to.
    """
    library = cache_folder() / f"{source.stem}-{_key(source)}.so"
    if library.exists():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(library))
    return _compile(source, library)


def compiler() -> list[str]:
    """The command that compiles C++: `$CXX`, or the first of c++, g++, clang++.

    Raises:
        ImportError: there is none, or `$CXX` is no command line.
    """
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ImportError(
            f"hf_softext.ops cannot read the command in the environment variable "
            f"CXX={os.environ['CXX']!r} ({error}): quote it as in a shell, or unset it."
        ) from error
    found = (
        shutil.which(chosen[0])
        if chosen
        else next(filter(None, map(shutil.which, COMPILERS)), None)
    )
    if found is None:
        tried = (
            f"CXX={chosen[0]!r} was not found"
            if chosen
            else f"none of {', '.join(COMPILERS)} was found"
        )
        raise ImportError(
            f"hf_softext.ops needs a C++ compiler, and {tried}. Install gcc or clang (Debian: apt "
            "install g++), or name one in the environment variable CXX; without one, use the "
            "functions of torch, which compute the same."
        )
    return [found, *chosen[1:]]


def _compile(source: Path, library: Path) -> ctypes.CDLL:
    command = compiler()
    folder = library.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        prefix = f"{source.stem}."
        _remove_stale(folder, prefix)
        descriptor, name = tempfile.mkstemp(suffix=".so", prefix=prefix, dir=folder)
    except OSError as error:
        raise RuntimeError(
            f"hf_softext.ops cannot write to {str(folder)!r} ({error.strerror}): name another "
            "folder in the environment variable SOFTEXT_CACHE."
        ) from error
    os.close(descriptor)
    unfinished = Path(name)
    try:
        done = subprocess.run(
            [*command, *FLAGS, "-o", name, str(source)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"{shlex.join([*command, *FLAGS])} could not compile {source.name}; another "
                f"compiler can be named in the environment variable CXX.\n{done.stderr}"
            )
        try:
            # a loadable file, and on the disk, before others may see it: the loader maps a file
            # that is cut short all the same, and the first access kills the process
            loaded = ctypes.CDLL(name)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise RuntimeError(
                f"{shlex.join([*command, *FLAGS])} made no library of {source.name} that can be "
                f"loaded ({error}); another compiler can be named in the environment variable "
                f"CXX.\n{done.stderr}"
            ) from error
        unfinished.replace(library)
        return loaded
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_stale(folder: Path, prefix: str) -> None:
    """What a build left behind that was killed."""
    for unfinished in folder.glob(f"{prefix}*.so"):
        # another process may remove it first
        with contextlib.suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > _STALE:
                unfinished.unlink()


def _key(source: Path) -> str:
    made_of = (source.read_text(encoding="utf-8"), *FLAGS, os.environ.get("CXX", ""), *_processor())
    return hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """What `native` depends on: a home directory may be shared by unlike machines."""
    known = [platform.system(), platform.machine(), platform.processor()]
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        known += sorted({line for line in lines if line.startswith(wanted)})
    return known
