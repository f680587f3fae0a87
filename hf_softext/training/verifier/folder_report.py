"""The report of an SDM head that lies in a folder."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from torch import Tensor
from transformers import AutoConfig

from hf_softext.heads.features import extract_features
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.saved_model import BACKBONE
from hf_softext.heads.sdm.saving import check_attached
from hf_softext.heads.sdm.verifier import positions
from hf_softext.training.causal_lm.model import describe_source, load_tokenizer
from hf_softext.training.training_report import REPORT, check_report
from hf_softext.training.verifier.arguments import DTYPES
from hf_softext.training.verifier.data import Columns, LabelledRows, read_rows
from hf_softext.training.verifier.judged import is_verifier, judge_rows, rows_of_fit
from hf_softext.training.verifier.model import load_backbone
from hf_softext.training.verifier.report import MeasuredRows, write_sdm_report
from hf_softext.training.verifier.run import RESULTS


def report_folder(
    folder: str,
    data: str | None = None,
    model: str | None = None,
    *,
    out: Path | None = None,
    columns: Columns | None = None,
    tokenizer: str | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    worst: int = 10,
    use_cpu: bool = False,
) -> Path:
    """Write the report of a saved head.

    Rows that the head was fitted on are left out of what is measured, and rows whose label is none
    of its classes are reported apart, as out of scope; a warning says how many.

    Args:
        folder: of the head.
        data: labelled rows to measure on; None: its own calibration rows stand in.
        model: the backbone, a folder or a hub id; None: `folder`, where it holds one.
        out: the page; None: `report.html` in `folder`.
        columns: of the data; None: those of `Columns`.
        tokenizer: a folder or a hub id; None: that of the model.
        max_length: most tokens of a row; None: as in the fit.
        dtype: of the model; None: as in the fit, where `eval_results.json` says it.
        batch_size: rows at once.
        worst: how many errors are shown.
        use_cpu: stay on the CPU where there is an accelerator.

    Returns:
        Where the page is.

    Raises:
        ValueError: another backbone than that of the fit, a missing column, no row that the head
            was not fitted on, or a model without data.
        OSError: no such head, data or model.
        ImportError: matplotlib is missing.
    """
    check_report(True)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: use {', '.join(DTYPES)}.")
    if model is not None and data is None:
        raise ValueError(f"model={model!r} is of use with data only: give it too.")
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of an SDM head.")
    head = SdmHead.from_pretrained(place)
    noted = _noted(place / RESULTS)
    facts: dict[str, Any] = {"alpha": head.config.alpha, "estimator": head.config.estimator}
    test, outside = None, None
    if data is not None:
        max_length = max_length or head.config.max_length
        # a name that is checked, nothing else of the file is used
        if dtype is None:
            dtype = str(noted.get("dtype")) if noted.get("dtype") in DTYPES else "auto"
        facts |= {"data": describe_source(data), "max_length": max_length, "dtype": dtype}
        source = _source(head, place, model)
        model_config = AutoConfig.from_pretrained(source)
        words = load_tokenizer(tokenizer, source if model is not None else folder)
        _, rows = read_rows(
            data,
            columns or Columns(),
            "generation" if is_verifier(head) else "classification",
            config=None,
            split="test",
            tokenizer=words,
            longest=max_length or positions(model_config),
            names=[str(head.label_name(one)) for one in range(head.thresholds.numel())],
            out_of_scope=True,
        )
        loaded = load_backbone(source, model_config, dtype, PartialState(cpu=use_cpu))
        check_attached(head, loaded)
        features = extract_features(
            loaded,
            words,
            rows.rows,
            pooling=head.config.pooling,
            layers=head.config.layers,
            batch_size=batch_size,
            max_length=max_length,
        )
        test, outside = _measured(head, features, rows, describe_source(data))
    path = place / REPORT if out is None else Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sdm_report(path, place.resolve().name, head, test, facts, worst, outside)
    return path


def _measured(
    head: SdmHead, features: Tensor, rows: LabelledRows, source: str
) -> tuple[MeasuredRows | None, MeasuredRows | None]:
    """Rows of the head's classes and rows of others, without those that it was fitted on."""
    texts = [row["text"] for row in rows.rows]
    support, calibration = rows_of_fit(head, features, texts, rows.labels)
    fitted, count = support | calibration, len(texts)
    told = f"{support.sum():,} are among its support, {calibration.sum():,} its calibration rows"
    if fitted.all():
        raise ValueError(
            f"every one of the {count:,} rows of {source} is one that the head was fitted on "
            f"({told}): give rows that it has not seen, or none for the figures of its calibration "
            "rows."
        )
    note = ", none of which is among the rows that the head compares with."
    if fitted.any():
        warnings.warn(
            f"{fitted.sum():,} of {count:,} rows of {source} are left out, as the head was fitted "
            f"on them: {told}.",
            stacklevel=3,
        )
        note = (
            f": {fitted.sum():,} others are left out, as the head was fitted on them ({told}). "
            "What is left may be of its fit too, and the figures then flatter."
        )
    inside = np.asarray(rows.labels) >= 0
    unknown = sorted({rows.words[place] for place in (~inside & ~fitted).nonzero()[0]})
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        warnings.warn(
            f"{(~inside & ~fitted).sum():,} rows of {source} are reported as out of scope, as no "
            f"class of the head has their label: {shown}.",
            stacklevel=3,
        )
    found = []
    for mask in (inside & ~fitted, ~inside & ~fitted):
        places = mask.nonzero()[0].tolist()
        if not places:
            found.append(None)
            continue
        part = rows.pick(places)
        judged, output = judge_rows(head, features[places], part.labels)
        found.append(MeasuredRows(judged, output, [row["text"] for row in part.rows], source, note))
    return found[0], found[1]


def _noted(path: Path) -> dict[str, Any]:
    """What the fit wrote down; nothing for a head that was fitted otherwise."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove it, or write it anew.") from None
    return found if isinstance(found, dict) else {}


def _source(head: SdmHead, folder: Path, model: str | None) -> str:
    """Where the model is; what a file says is not loaded without being asked for."""
    if model is not None:
        return model
    for place in (folder / BACKBONE, folder):
        if (place / "config.json").is_file():
            return str(place)
    known = (head.config.backbone or {}).get("name_or_path") or "an unnamed model"
    raise ValueError(
        f"model is missing: the head was fitted behind {known}; name it (--model), or fit with "
        "save_model, which puts the model into the folder."
    )
