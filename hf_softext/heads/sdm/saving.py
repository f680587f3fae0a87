"""The files of a head: settings as JSON, tensors as safetensors, the support as JSON lines."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_softext.heads.features import check_backbone
from hf_softext.heads.sdm.card import card
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.head import SdmHead

CONFIG, TENSORS, SUPPORT = "sdm_config.json", "sdm_head.safetensors", "sdm_support.jsonl"


def save_head(head: SdmHead, folder: Path) -> None:
    """Write a head's files; each appears whole or not at all, the settings last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous().cpu() for name, value in head.state_dict().items()}
    _whole(folder / TENSORS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    lines = [
        json.dumps({"id": one, "text": text}, ensure_ascii=False)
        for one, text in zip(head.support_ids, head.support_texts, strict=True)
    ]
    _write(folder / SUPPORT, "".join(f"{line}\n" for line in lines))
    settings = {**head.config.to_dict(), "report": head.report}
    _write(folder / CONFIG, json.dumps(settings, indent=2, allow_nan=False) + "\n")
    if not (folder / "README.md").exists():
        _write(folder / "README.md", card(head, complete=(folder / "config.json").exists()))


def load_head(name_or_path: str | Path, model: Any, download: Mapping[str, Any]) -> SdmHead:
    """`SdmHead.from_pretrained`."""
    local = Path(name_or_path)

    def file(name: str) -> Path:
        if local.is_dir():
            if not (local / name).is_file():
                raise OSError(f"{local} has no {name}: it is no folder of an SDM head.")
            return local / name
        return Path(hf_hub_download(str(name_or_path), name, **download))

    settings = json.loads(file(CONFIG).read_text(encoding="utf-8"))
    report = settings.pop("report", {})
    config = SdmConfig.from_dict(settings)
    head = SdmHead(config)
    with safe_open(file(TENSORS), framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    # not splitlines: a text may hold a line separator of Unicode
    lines = file(SUPPORT).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    _check(head, tensors, len(rows))
    prefix = "adaptor."
    weights = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    head.adaptor.load_state_dict(weights)
    head.fill({name: tensors[name] for name in head.state_names})
    head.report = report
    head.support_ids = [str(row["id"]) for row in rows]
    head.support_texts = [row.get("text") for row in rows]
    if model is not None:
        check_attached(head, model)
    return head.eval()


def check_attached(head: SdmHead, model: Any) -> None:
    """Make sure that a head belongs behind a model: for another, its region means nothing.

    Raises:
        ValueError: it was fitted on another model, or on features of unknown origin.
    """
    if head.config.backbone is None or head.config.pooling is None:
        raise ValueError(
            "this head was fitted on features alone, so nobody knows of which model they are: fit "
            "it with SdmHead.fit, or give SdmConfig(backbone=backbone_fingerprint(model), "
            "pooling=...) to fit_features."
        )
    check_backbone(model, head.config.backbone)


def push_head(head: SdmHead, repo_id: str, private: bool | None, options: dict[str, Any]) -> str:
    """`SdmHead.push_to_hub`."""
    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    options.setdefault("commit_message", "Upload an SDM head")
    with tempfile.TemporaryDirectory() as folder:
        save_head(head, Path(folder))
        return str(api.upload_folder(repo_id=repo, folder_path=folder, **options))


def _check(head: SdmHead, tensors: Mapping[str, Tensor], rows: int) -> None:
    """Names, numbers of rows and sizes, before anything is computed with them."""
    config = head.config
    wanted = {f"adaptor.{name}" for name in head.adaptor.state_dict()} | set(head.state_names)
    if set(tensors) != wanted:
        raise ValueError(
            f"{TENSORS} does not fit {CONFIG}: missing {sorted(wanted - set(tensors))}, unknown "
            f"{sorted(set(tensors) - wanted)}."
        )
    support, calibration = (len(tensors[f"{name}_labels"]) for name in ("support", "calibration"))
    shapes = {
        "support_exemplars": (support, config.exemplar_dim),
        "support_predictions": (support,),
        "calibration_probs": (calibration, config.num_labels),
        "calibration_predictions": (calibration,),
        "calibration_similarity": (calibration,),
        "calibration_squared_distance": (calibration,),
        "min_similarity": (),
        "thresholds": (config.num_labels,),
    }
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{name} of shape {tuple(tensors[name].shape)} in {TENSORS} must be {shape}: the "
                "files are not of one head."
            )
    if rows != support:
        raise ValueError(f"{SUPPORT} has {rows} rows, and {TENSORS} {support}: not of one head.")


def _whole(path: Path, write: Callable[[Path], Any]) -> None:
    staged = path.with_name(f"{path.name}.tmp")
    write(staged)
    os.replace(staged, path)


def _write(path: Path, text: str) -> None:
    _whole(path, lambda staged: staged.write_text(text, encoding="utf-8"))
