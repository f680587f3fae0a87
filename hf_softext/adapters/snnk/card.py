"""What the README next to an adapter says first: what to import."""

import os
import tempfile
from pathlib import Path

NOTE = """This adapter loads where the package hf_softext has been imported; peft does not know its
type, SNNK, by itself:

```python
import hf_softext
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this folder or repository")
```
"""


def add_note(folder: Path) -> None:
    """Put the note at the head of a folder's README.md, after its metadata, if it is not in it.

    Args:
        folder: a README is made if there is none.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if "import hf_softext" in text:
        return
    metadata, body = "", text
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        end = text.index("\n---\n", 4) + len("\n---\n")
        metadata, body = text[:end] + "\n", text[end:].lstrip("\n")
    handle, name = tempfile.mkstemp(dir=folder, prefix=".README")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(metadata + NOTE + ("\n" + body if body else ""))
    # mkstemp lets nobody else read it
    os.chmod(name, 0o644)
    os.replace(name, path)
