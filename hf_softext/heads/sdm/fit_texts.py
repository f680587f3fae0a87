"""Fitting a head on texts behind a frozen model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_softext.heads.features import backbone_fingerprint, default_pooling, extract_features
from hf_softext.heads.labels import without_gaps
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.fit import fit_rows, with_settings
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.token_rows import check_dataset


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
    check_dataset(train_dataset, "train_dataset")
    columns = _columns(train_dataset)
    for name, column in (("label_column", label_column), ("id_column", id_column)):
        if column is not None and column not in columns:
            raise ValueError(f"{name}={column!r} is no column of train_dataset: {sorted(columns)}.")
    labels, names = _labels(train_dataset, label_column, config.id2label)
    if config.num_labels is None:
        labels, names = without_gaps(labels, names)
    names = names or _model_names(model, labels)
    pooling = pooling or config.pooling or default_pooling(model)
    layers = config.layers if tuple(layers) == (-1,) else tuple(layers)
    max_length = max_length or config.max_length
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
                "layers": layers,
                "max_length": max_length,
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
        if not len(dataset) or not all(hasattr(row, "keys") for row in dataset):
            raise TypeError("train_dataset must be a datasets.Dataset or a list of mappings.")
        names = set.intersection(*(set(row) for row in dataset))
    return set(names)


def _column(dataset: Any, name: str) -> list[Any]:
    if hasattr(dataset, "column_names"):
        return list(dataset[name])
    return [row[name] for row in dataset]


def _labels(
    dataset: Any, column: str, id2label: Mapping[int, str]
) -> tuple[list[int], dict[int, str]]:
    """Numbers, and the names of the classes: those asked for, or those of the dataset."""
    values = _column(dataset, column)
    feature = getattr(dataset, "features", {}).get(column)
    names = getattr(feature, "names", None)
    if any(isinstance(value, str) for value in values):
        others = [value for value in values if not isinstance(value, str)]
        if others:
            raise ValueError(
                f"label_column={column!r} holds names and {others[0]!r}: give a name for each row."
            )
        names = sorted(set(values))
        place = {name: number for number, name in (id2label or dict(enumerate(names))).items()}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise ValueError(
                f"label_column={column!r} holds {unknown[0]!r}, which is none of id2label's names: "
                f"{', '.join(place)}."
            )
        values = [place[value] for value in values]
    return [_whole(value) for value in values], dict(id2label or enumerate(names or ()))


def _whole(value: Any) -> Any:
    """A Python number for one of numpy or torch."""
    return value.item() if hasattr(value, "item") else value


def _model_names(model: Any, labels: list[int]) -> dict[int, str]:
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    # transformers names two classes where a model has none
    told = not all(str(name).startswith("LABEL_") for name in names.values())
    return dict(names) if told and len(names) == max(labels, default=-1) + 1 else {}
