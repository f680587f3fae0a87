"""The files of a head: settings as JSON, tensors as safetensors, the support as JSON lines."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from hf_softext.heads.features import check_backbone
from hf_softext.heads.sdm.card import card
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.head import SdmHead

CONFIG, TENSORS, SUPPORT = "sdm_config.json", "sdm_head.safetensors", "sdm_support.jsonl"


def save_head(head: SdmHead, folder: Path) -> None:
    """Write a head's files; each appears whole or not at all, the settings last, with a digest of
    all, so that what loads was written by one call."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: value.contiguous().cpu() for name, value in head.state_dict().items()}
    tensors = save(held, metadata={"format": "pt"})
    lines = "".join(
        json.dumps({"id": one, "text": text}, ensure_ascii=False) + "\n"
        for one, text in zip(head.support_ids, head.support_texts, strict=True)
    )
    # half of a surrogate pair is no UTF-8, but JSON has an escape for it
    support = lines.encode(errors="backslashreplace")
    settings = {**head.config.to_dict(), "report": head.report}
    settings["sha256"] = _digest(settings, tensors, support)
    _write(folder / TENSORS, tensors)
    _write(folder / SUPPORT, support)
    _write(folder / CONFIG, (json.dumps(settings, indent=2, allow_nan=False) + "\n").encode())
    if not (folder / "README.md").exists():
        text = card(head, complete=(folder / "config.json").exists())
        _write(folder / "README.md", text.encode())


def load_head(name_or_path: str | Path, model: Any, download: Mapping[str, Any]) -> SdmHead:
    """`SdmHead.from_pretrained`."""
    local = Path(name_or_path)

    def file(name: str) -> bytes:
        if local.is_dir():
            if not (local / name).is_file():
                raise OSError(f"{local} has no {name}: it is no folder of an SDM head.")
            return (local / name).read_bytes()
        return Path(hf_hub_download(str(name_or_path), name, **download)).read_bytes()

    written, lines = file(TENSORS), file(SUPPORT)
    try:
        settings = dict(json.loads(file(CONFIG)))
        tensors = load(written)
        # not splitlines: a text may hold a line separator of Unicode
        rows = [dict(json.loads(line)) for line in lines.split(b"\n") if line]
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{name_or_path} is damaged: {error}. Save or fetch it again.") from error
    digest, noted = settings.pop("sha256", None), dict(settings)
    report = settings.pop("report", {})
    config = SdmConfig.from_dict(settings)
    _check(config, tensors, len(rows))
    if digest != _digest(noted, written, lines):
        raise ValueError(
            f"{CONFIG}, {TENSORS} and {SUPPORT} in {name_or_path} are not as one call of "
            "save_pretrained wrote them: save or fetch the head again. To change a setting, load "
            "the head, change it and save it."
        )
    head = SdmHead(config)
    prefix = "adaptor."
    weights = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    head.adaptor.load_state_dict(weights)
    head.fill({name: tensors[name] for name in head.state_names})
    head.report = report
    head.support_ids = [str(row["id"]) for row in rows]
    head.support_texts = [row["text"] for row in rows]
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


def check_precision(model: nn.Module, before: torch.dtype) -> None:
    """Raise ValueError where a backbone was cast since its head was attached to it."""
    now = next(model.parameters()).dtype
    if now != before:
        raise ValueError(
            f"the backbone is {now} now, and was {before} when the head was attached: its region "
            "means nothing there. Load the model in that precision, or fit a head for this one."
        )


def push_head(head: SdmHead, repo_id: str, private: bool | None, options: dict[str, Any]) -> str:
    """`SdmHead.push_to_hub`."""
    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    options.setdefault("commit_message", "Upload an SDM head")
    with tempfile.TemporaryDirectory() as folder:
        save_head(head, Path(folder))
        return str(api.upload_folder(repo_id=repo, folder_path=folder, **options))


def _check(config: SdmConfig, tensors: Mapping[str, Tensor], rows: int) -> None:
    """Names, kinds and sizes, before anything is made or computed with them."""
    if config.num_features is None or config.num_labels is None:
        raise ValueError(f"{CONFIG} lacks num_features or num_labels.")
    width, classes = config.exemplar_dim, config.num_labels
    # letters stand for sizes that the tensors themselves give
    shapes: dict[str, tuple[int | str, ...]] = {
        "adaptor.exemplar.weight": (width, config.num_features),
        "adaptor.exemplar.bias": (width,),
        "adaptor.classifier.weight": (classes, width),
        "adaptor.classifier.bias": (classes,),
        "adaptor.feature_mean": (),
        "adaptor.feature_std": (),
        "support_labels": ("S",),
        "support_predictions": ("S",),
        "support_exemplars": ("S", width),
        "calibration_labels": ("N",),
        "calibration_predictions": ("N",),
        "calibration_similarity": ("N",),
        "calibration_squared_distance": ("N",),
        "calibration_probs": ("N", classes),
        "min_similarity": (),
        "thresholds": (classes,),
    }
    if config.estimator == "universal":
        shapes |= {
            "rescaling_weight": (classes, classes),
            "split_outputs": ("J", "R"),
            "split_similarity": ("J", "R"),
            "split_labels": ("J", "R"),
            "split_medians": ("J", classes, "T"),
            "spread_similarity": (),
            "spread_offsets": (classes, "T"),
        }
    if set(tensors) != set(shapes):
        raise ValueError(
            f"{TENSORS} does not fit {CONFIG}: missing {sorted(set(shapes) - set(tensors))}, "
            f"unknown {sorted(set(tensors) - set(shapes))}."
        )
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        found = tensors[name]
        if len(found.shape) == len(shape):
            pairs = zip(shape, found.shape, strict=True)
            shape = tuple(
                sizes.setdefault(one, size) if isinstance(one, str) else one for one, size in pairs
            )
        whole = name.endswith(("labels", "predictions"))
        kind = torch.int64 if whole else torch.float32
        if tuple(found.shape) != shape or found.dtype != kind:
            raise ValueError(
                f"{name} of shape {tuple(found.shape)} and {found.dtype} in {TENSORS} must be "
                f"{shape} and {kind}: the files are not of one head."
            )
    if rows != sizes["S"]:
        raise ValueError(f"{SUPPORT} has {rows} rows, and {TENSORS} {sizes['S']}: not of one head.")


def _digest(settings: Mapping[str, Any], tensors: bytes, support: bytes) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in (tensors, support):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    staged.write_bytes(data)
    os.replace(staged, path)
