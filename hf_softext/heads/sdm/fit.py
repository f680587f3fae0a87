"""Fitting a head: splits, one training each, and the best of them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_softext.functional.sdm import sdm
from hf_softext.heads.sdm.adaptor import ExemplarAdaptor
from hf_softext.heads.sdm.calibration import (
    Calibration,
    Scores,
    fit_rescaling,
    plain_scores,
)
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.diagnosis import warn_if_empty
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.rows import check_counts, check_features, check_labels
from hf_softext.heads.sdm.split import distinct_rows, halves
from hf_softext.heads.sdm.split_files import SplitFiles
from hf_softext.heads.sdm.training import Half, SplitTraining
from hf_softext.heads.user_warning import warn_user

# between two notes of where a split is
_SAVE_SECONDS = 30.0


def fit_rows(
    features: Tensor,
    labels: Any,
    *,
    ids: Sequence[str] | None,
    texts: Sequence[str | None] | None,
    config: SdmConfig | None,
    work_dir: str | Path | None,
    progress: bool,
    settings: dict[str, Any],
) -> SdmHead:
    """`SdmHead.fit_features`."""
    config = with_settings(config or SdmConfig(), settings)
    check_features(features, config.num_features, finite=True)
    features = features.detach().float()
    labels = check_labels(labels, len(features), names=config.id2label)
    count = config.num_labels or (int(labels.max()) + 1 if len(labels) else 0)
    labels = check_labels(
        labels, len(features), num_labels=count, every_class=True, names=config.id2label
    )
    if count < 2:
        raise ValueError("labels are all of one class: there is nothing to tell apart.")
    ids = [str(row) for row in range(len(labels))] if ids is None else list(map(str, ids))
    texts = [None] * len(labels) if texts is None else list(texts)
    if len(ids) != len(labels) or len(texts) != len(labels) or len(set(ids)) < len(ids):
        raise ValueError(f"ids and texts: one for each of {len(labels)} rows, and ids that differ.")
    kept, doubles, other = distinct_rows(features, labels)
    if doubles:
        warn_user(
            f"{doubles} of {len(labels)} rows have features that another row has too ({other} with "
            "another label); only the first of each are used."
        )
    check_counts(torch.bincount(labels[kept], minlength=count), config.id2label)
    config = replace(config, num_features=features.shape[1], num_labels=count)
    request = {"config": config.to_dict(), "rows": _digest(features, labels, ids)}
    files = SplitFiles(work_dir, request)
    rows, wanted = features[kept.to(features.device)], labels[kept]
    splits = []
    total = config.num_splits * config.epochs
    with tqdm(total=total, desc="SDM", unit="epoch", disable=not progress) as bar:
        for split in range(config.num_splits):
            found = files.load(split)
            if found is None:
                found = _fit_split(rows, wanted, config, split, files, bar)
                files.save(split, *found)
            bar.n = (split + 1) * config.epochs
            bar.refresh()
            splits.append(found)
    best = min(range(len(splits)), key=lambda split: (splits[split][1]["loss"], -split))
    head = head_of_splits(config, [tensors for tensors, _ in splits], best, features.device)
    head.report = {
        "rows": len(labels),
        "distinct_rows": len(kept),
        "best_split": best,
        "splits": [notes for _, notes in splits],
    }
    chosen = kept[splits[best][0]["support_rows"]].tolist()
    head.support_ids = [ids[row] for row in chosen]
    head.support_texts = [texts[row] for row in chosen]
    warn_if_empty(head)
    return head


def with_settings(config: SdmConfig, settings: dict[str, Any]) -> SdmConfig:
    """Some settings in place of others.

    Raises:
        TypeError: one that there is not.
    """
    known = [entry.name for entry in fields(SdmConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise TypeError(
            f"{unknown[0]!r} is neither an argument nor a setting of SdmConfig, which has "
            f"{', '.join(known)}."
        )
    return replace(config, **settings)


def _fit_split(
    features: Tensor, labels: Tensor, config: SdmConfig, split: int, files: SplitFiles, bar: tqdm
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(config.seed + split)
    # every class has rows
    count, home = int(labels.max()) + 1, features.device
    parts = halves(labels, count, config.stratify, generator)
    adaptor = ExemplarAdaptor(features.shape[1], config.exemplar_dim, count).to(home)
    adaptor.initialize(generator)
    adaptor.standardize_by(features[parts[0].to(home)])
    train, calibration = (
        Half(adaptor.standardize(features[part.to(home)]), labels[part].to(home)) for part in parts
    )
    training = SplitTraining(train, calibration, adaptor, config, generator)
    files.load_progress(split, training)
    saved = time.monotonic()

    def after_epoch(training: SplitTraining) -> None:
        nonlocal saved
        bar.n = split * config.epochs + training.epoch
        bar.set_postfix(split=split + 1, loss=f"{training.best_loss:.4f}", refresh=False)
        bar.update(0)
        if time.monotonic() - saved >= _SAVE_SECONDS or training.epoch == config.epochs:
            files.save_progress(split, training)
            saved = time.monotonic()

    training.run(after_epoch)
    tensors = split_state(training) | {"support_rows": parts[0]}
    rows = Calibration(*(tensors[f"calibration_{name}"] for name in Calibration._fields))
    scores = plain_scores(rows)
    if config.estimator == "universal":
        tensors |= fit_rescaling(rows, generator, config, not bar.disable)
        valid = tensors["split_similarity"]
        scores = Scores(tensors["split_outputs"], valid, valid, rows.labels, rows.num_labels)
    least = float(scores.region(config.alpha).min_similarity)
    notes = {
        "loss": training.best_loss,
        "epoch": training.best_epoch,
        "min_similarity": least if least < float("inf") else None,
        "history": training.history,
    }
    return tensors, notes


def split_state(training: SplitTraining) -> dict[str, Tensor]:
    """What a head takes from a training that is over, by name."""
    train, calibration = training.train, training.calibration
    similarity, distance, _ = calibration.evidence
    rows = Calibration(
        calibration.labels,
        calibration.predictions,
        similarity,
        distance,
        sdm(calibration.logits, similarity, calibration.distance),
    )
    tensors = {f"adaptor.{name}": value for name, value in training.adaptor.state_dict().items()}
    tensors |= {f"calibration_{name}": value for name, value in rows._asdict().items()}
    return tensors | {
        "support_exemplars": train.exemplars,
        "support_labels": train.labels,
        "support_predictions": train.predictions,
    }


def head_of_splits(
    config: SdmConfig, splits: list[dict[str, Tensor]], best: int, device: torch.device
) -> SdmHead:
    """The head of one split, with what the universal estimator takes from all; its region is looked
    for. Ids and texts are still to be set."""
    head = SdmHead(config)
    weights, state = {}, {}
    for name, value in splits[best].items():
        if name.startswith("adaptor."):
            weights[name.removeprefix("adaptor.")] = value
        elif name in head.state_names:
            state[name] = value.to(device)
    for name in head.state_names:
        if name.startswith("split_"):
            state[name] = torch.stack([tensors[name].to(device) for tensors in splits])
    head.adaptor.load_state_dict(weights)
    head.to(device)
    state["min_similarity"] = torch.tensor(torch.inf, device=device)
    state["thresholds"] = torch.zeros(config.num_labels or 0, device=device)
    head.fill(state)
    head.find_region()
    return head.eval()


def _digest(features: Tensor, labels: Tensor, ids: list[str]) -> str:
    digest = hashlib.sha256(features.cpu().contiguous().numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    digest.update("\0".join(ids).encode())
    return digest.hexdigest()
