"""Fitting a head on texts behind a frozen model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_softext.heads.features import backbone_fingerprint, default_pooling, extract_features
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.fit import fit_rows, with_settings
from hf_softext.heads.sdm.head import SdmHead


def fit_texts(
    model: Any,
    tokenizer: Any,
    train_dataset: Any,
    *,
    text_column: str,
    label_column: str,
    id_column: str | None,
    keep_texts: bool,
    pooling: str | None,
    layers: Sequence[int],
    max_length: int | None,
    feature_batch_size: int,
    config: SdmConfig | None,
    work_dir: str | Path | None,
    progress: bool,
    settings: dict[str, Any],
) -> SdmHead:
    """`SdmHead.fit`."""
    config = with_settings(config or SdmConfig(), settings)
    columns = _columns(train_dataset)
    for name, column in (("label_column", label_column), ("id_column", id_column)):
        if column is not None and column not in columns:
            raise ValueError(f"{name}={column!r} is no column of train_dataset: {sorted(columns)}.")
    labels, names = _labels(train_dataset, label_column)
    names = dict(config.id2label) or names or _model_names(model, labels)
    pooling = pooling or config.pooling or default_pooling(model)
    work = None if work_dir is None else Path(work_dir)
    features = extract_features(
        model,
        tokenizer,
        train_dataset,
        text_column=text_column,
        pooling=pooling,
        layers=layers,
        batch_size=feature_batch_size,
        max_length=max_length,
        cache_dir=None if work is None else work / "features",
        progress=progress,
    )
    # equal texts may differ by rounding, having been padded differently; then they would not be
    # seen to be equal
    features = features[_first_of_equal(train_dataset, columns, text_column)]
    texts = None
    if keep_texts and text_column in columns:
        texts = list(map(str, _column(train_dataset, text_column)))
    return fit_rows(
        features,
        labels,
        ids=None if id_column is None else list(map(str, _column(train_dataset, id_column))),
        texts=texts,
        config=with_settings(
            config,
            {
                "pooling": pooling,
                "layers": tuple(layers),
                "id2label": names,
                "backbone": backbone_fingerprint(model),
            },
        ),
        work_dir=None if work is None else work / "splits",
        progress=progress,
        settings={},
    )


def _columns(dataset: Any) -> set[str]:
    names = getattr(dataset, "column_names", None)
    if names is None:
        if not len(dataset) or not hasattr(dataset[0], "keys"):
            raise TypeError("train_dataset must be a datasets.Dataset or a list of mappings.")
        names = set.intersection(*(set(row) for row in dataset))
    return set(names)


def _column(dataset: Any, name: str) -> list[Any]:
    if hasattr(dataset, "column_names"):
        return list(dataset[name])
    return [row[name] for row in dataset]


def _first_of_equal(dataset: Any, columns: set[str], text_column: str) -> list[int]:
    name = "input_ids" if "input_ids" in columns else text_column
    seen: dict[str, int] = {}
    return [seen.setdefault(str(row), place) for place, row in enumerate(_column(dataset, name))]


def _labels(dataset: Any, column: str) -> tuple[list[int], dict[int, str]]:
    values = _column(dataset, column)
    feature = getattr(dataset, "features", {}).get(column)
    names = getattr(feature, "names", None)
    if values and isinstance(values[0], str):
        names = sorted(set(values))
        place = {name: number for number, name in enumerate(names)}
        values = [place[value] for value in values]
    return values, dict(enumerate(names or ()))


def _model_names(model: Any, labels: list[int]) -> dict[int, str]:
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    # transformers names two classes where a model has none
    told = not all(str(name).startswith("LABEL_") for name in names.values())
    return dict(names) if told and len(names) == max(labels, default=-1) + 1 else {}
