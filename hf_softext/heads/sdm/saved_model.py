"""What tells a folder of backbone and head from one of a model of transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import AutoConfig, PreTrainedConfig

# the folder of the backbone beside the head's files
BACKBONE = "backbone"


class SdmModelConfig(PreTrainedConfig):
    """The `config.json` above a backbone and its SDM head: names of the classes, and a kind that no
    class of transformers is for, so that none of them is loaded with random weights."""

    model_type = "sdm_classifier"


def holds_backbone(name_or_path: str | Path, download: Mapping[str, Any]) -> bool:
    """Whether the backbone has a folder of its own, by the kind of `config.json`.

    Args:
        name_or_path: a folder, or a repository of the hub.
        download: of `huggingface_hub.hf_hub_download`.
    """
    path = Path(name_or_path) / "config.json"
    if not Path(name_or_path).is_dir():
        path = Path(hf_hub_download(str(name_or_path), "config.json", **download))
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(found, dict) and found.get("model_type") == SdmModelConfig.model_type


def register_config() -> None:
    """Make the kind known to transformers; calling it again changes nothing."""
    AutoConfig.register(SdmModelConfig.model_type, SdmModelConfig, exist_ok=True)
