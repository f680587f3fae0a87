"""The folder of an unfinished run: whose it is, so that only the same run goes on in it."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NOTE = "request.json"
# in it: the machine and the number of the process that claimed last
_PROCESS = "process"


def claim(folder: Path, request: Mapping[str, Any]) -> None:
    """Make a folder a run's own, or make sure that it is.

    A run that has ended and left nothing but its claim, as one that failed before its first
    checkpoint, has nothing that another could spoil: the folder goes to whoever asks next.

    Args:
        folder: of the run in progress; it is made if it is not there.
        request: what makes two runs the same, by name; as JSON can say it.

    Raises:
        ValueError: the folder holds work of another run, or something else, or is the claim of
            another run that goes on on this machine.
    """
    # as JSON gives it back
    wanted = json.loads(json.dumps(request))
    note = folder / _NOTE
    if not note.is_file():
        if folder.exists() and any(not path.name.startswith(_NOTE) for path in folder.iterdir()):
            raise ValueError(f"{folder} holds other files: name a folder of its own, or remove it.")
        folder.mkdir(parents=True, exist_ok=True)
        _write(note, wanted)
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # cut short, or something else's: nothing of it agrees
        found = {}
    changed = [name for name in wanted if found.get(name) != wanted[name]]
    if changed and _runs(found.get(_PROCESS)):
        raise ValueError(
            f"{folder} belongs to a run with another {', '.join(changed)} that goes on, in process "
            f"{found[_PROCESS][1]}: name a folder of its own, or end that run first."
        )
    if not changed or not _has_work(folder):
        _write(note, wanted)
    else:
        raise ValueError(
            f"{folder} holds an unfinished run with another {', '.join(changed)}: repeat its "
            "arguments to continue it, or remove the folder."
        )


def _write(note: Path, wanted: dict[str, Any]) -> None:
    # several processes may write the same
    staged = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    content = {**wanted, _PROCESS: [platform.node(), os.getpid()]}
    staged.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(staged, note)


def _runs(process: Any) -> bool:
    """Whether a process of this machine, other than this one, is there; False where unknown."""
    if not isinstance(process, list) or len(process) != 2 or os.name != "posix":
        return False
    machine, number = process
    if machine != platform.node() or not isinstance(number, int) or number == os.getpid():
        return False
    try:
        # asks, and sends nothing
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # another user's
        pass
    return True


def _has_work(folder: Path) -> bool:
    """Whether there is a file other than claims and what was never finished."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return any(path.name != _NOTE and path.suffix != ".tmp" for path in files)
