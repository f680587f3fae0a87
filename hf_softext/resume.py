"""The folder of an unfinished run: whose it is, so that only the same run goes on in it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NOTE = "request.json"


def claim(folder: Path, request: Mapping[str, Any]) -> None:
    """Make a folder a run's own, or make sure that it is.

    Args:
        folder: of the run in progress; it is made if it is not there.
        request: what makes two runs the same, by name; as JSON can say it.

    Raises:
        ValueError: the folder holds another run, or something else.
    """
    # as JSON gives it back
    wanted = json.loads(json.dumps(request))
    note, staged = folder / _NOTE, folder / f"{_NOTE}.tmp"
    if not note.is_file():
        if folder.exists() and any(path != staged for path in folder.iterdir()):
            raise ValueError(f"{folder} holds other files: name a folder of its own, or remove it.")
        folder.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
        os.replace(staged, note)
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        found = {}
    changed = [name for name in wanted if found.get(name) != wanted[name]]
    if changed:
        raise ValueError(
            f"{folder} holds an unfinished run with another {', '.join(changed)}: repeat its "
            "arguments to continue it, or remove the folder."
        )
