"""Heads on disk and on the hub: one JSON and one safetensors file, beside any model."""

import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from huggingface_hub import HfApi, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hf_softext.heads.backbone import backbone, backbone_fingerprint, check_backbone

_FORMAT = 1
_README = """---
library_name: hf_softext
---
```python
from {module} import {kind}

head = {kind}.from_pretrained("folder or repository of this file")
```
"""


class SavedHead:
    """Saves and loads what a head says about itself.

    Attributes:
        name: of the head, and of its files: `name.safetensors` and `name_config.json`.
        kinds: what the config must hold: for each key the types that its value may have.
        backbone: what `backbone_fingerprint` says of the model that it was fitted on; None where it
            was fitted on features, of which it knows no model.
        id2label: names of the classes, by number; empty where they have none.
    """

    name: ClassVar[str]
    kinds: ClassVar[dict[str, tuple[type, ...]]]

    backbone: dict[str, Any] | None = None
    id2label: Mapping[int, str] = MappingProxyType({})
    _checked: tuple[Any, Any] | None = None

    def remember_backbone(self, model: Any) -> None:
        """Belong to this model from now on; None: to none."""
        self.backbone = None if model is None else backbone_fingerprint(model)
        self._checked = None if model is None else _seen(model)

    def check_model(self, model: Any) -> None:
        """Make sure that a model is the one that the head belongs to; once for each object, and
        again where it was cast.

        Raises:
            ValueError: it is another one.
        """
        if self.backbone is not None and self._checked != _seen(model):
            check_backbone(model, self.backbone)
            self._checked = _seen(model)

    def __getstate__(self) -> dict[str, Any]:
        # a weak reference cannot be pickled, and is of this process
        return {**self.__dict__, "_checked": None}

    def _config(self) -> dict[str, Any]:
        """What is not a tensor, by the keys of `kinds`."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        """What is."""
        raise NotImplementedError

    @classmethod
    def _restored(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A head from both; raises KeyError, ValueError or RuntimeError where they do not fit."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the head's two files, beside whatever is in the folder already.

        Each is written under another name first, and the config holds the other's SHA-256: what
        loads was written whole.

        Args:
            folder: it is made if it is not there. A README is added if it has none.

        Raises:
            ValueError: the head has not been fitted.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = save({name: one.cpu().contiguous() for name, one in self._tensors().items()})
        note = {"format": _FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **self._config()}
        _write(folder / f"{self.name}.safetensors", data)
        _write(folder / f"{self.name}_config.json", (json.dumps(note, indent=2) + "\n").encode())
        if not (folder / "README.md").exists():
            text = _README.format(module=type(self).__module__, kind=type(self).__name__)
            _write(folder / "README.md", text.encode())

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> Self:
        """Load a head.

        Args:
            source: a folder, or a repository of the hub.
            revision: of the repository.
            token: for the hub.

        Raises:
            FileNotFoundError: the folder has no such head.
            ValueError: the files are damaged, of two heads, or of a newer version.
        """
        names = (f"{cls.name}_config.json", f"{cls.name}.safetensors")
        if Path(source).is_dir():
            paths = [Path(source) / name for name in names]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{source} has no {missing[0]}: no {cls.__name__} was saved there."
                )
        else:
            hub: dict[str, Any] = {"revision": revision, "token": token}
            paths = [Path(hf_hub_download(str(source), name, **hub)) for name in names]
        data = paths[1].read_bytes()
        try:
            note = json.loads(paths[0].read_text(encoding="utf-8"))
            version, digest = note.pop("format"), note.pop("sha256")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{paths[0]} is not the config of a {cls.__name__}.") from error
        if version != _FORMAT:
            raise ValueError(
                f"{paths[0]} has format {version!r}, this version of hf_softext reads {_FORMAT}."
            )
        if digest != hashlib.sha256(data).hexdigest():
            raise ValueError(f"{paths[1]} is damaged, or not of {paths[0].name}: save it again.")
        if "id2label" in cls.kinds:
            # files of before have none
            note = {"id2label": {}} | note
        _check_kinds(paths[0], note, cls.kinds)
        if "id2label" in note:
            note["id2label"] = {int(key): str(name) for key, name in note["id2label"].items()}
        try:
            return cls._restored(note, load(data))
        except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{paths[1]} and {paths[0].name} do not fit: {error}") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the head's files; a README that the repository has stays.

        Args:
            repo_id: of the hub; it is made if it is not there.
            private: whether a new one is private.
            token: for the hub.
            commit_message: of the upload.

        Returns:
            The address of the commit.

        Raises:
            ValueError: the head has not been fitted.
        """
        hub = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if hub.file_exists(repo_id, "README.md"):
                os.remove(Path(folder) / "README.md")
            message = commit_message or f"Upload {type(self).__name__}"
            return str(
                hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
            )


def _seen(model: Any) -> tuple[Any, Any]:
    return weakref.ref(model), next(backbone(model).parameters()).dtype


def _write(path: Path, data: bytes) -> None:
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    staged.write_bytes(data)
    os.replace(staged, path)


def _check_kinds(path: Path, note: Any, kinds: Mapping[str, tuple[type, ...]]) -> None:
    if set(note) != set(kinds):
        wrong = sorted(set(note) ^ set(kinds))
        raise ValueError(f"{path} lacks or should not have {', '.join(wrong)}.")
    for name, kind in kinds.items():
        # a bool is an int to isinstance
        if type(note[name]) not in kind:
            raise ValueError(f"{path} has {name}={note[name]!r}, of a kind that it cannot be.")
