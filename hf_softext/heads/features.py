"""Frozen features of texts: what every head that is fitted behind a model starts from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from tqdm import tqdm

from hf_softext.heads.backbone import (
    backbone,
    backbone_fingerprint,
    check_backbone,
    default_pooling,
    evaluating,
)
from hf_softext.heads.feature_cache import FeatureCache
from hf_softext.heads.pooling import POOLINGS, check_pooling, pooled_features
from hf_softext.heads.token_rows import token_rows

__all__ = [
    "POOLINGS",
    "Extraction",
    "backbone",
    "backbone_fingerprint",
    "check_backbone",
    "default_pooling",
    "extract_features",
    "pooled_features",
]
# batches in one file of the cache
_SHARD = 64


class Extraction(TypedDict, total=False):
    """How a head may have its features made; see `extract_features`."""

    text_column: str
    batch_size: int
    max_length: int | None
    cache_dir: str | Path | None
    progress: bool


def extract_features(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    *,
    text_column: str = "text",
    pooling: str | None = None,
    layers: Sequence[int] = (-1,),
    batch_size: int = 32,
    max_length: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Tensor:
    """Features of every row of a dataset, without gradients and with dropout off.

    Args:
        model: of transformers: an encoder, a classifier or a causal language model, quantized or
            not, also inside of peft; it is in its old mode afterwards.
        tokenizer: of the model; None is enough for rows of token ids. One without a padding token
            will do, as padding is masked.
        dataset: a `datasets.Dataset`, a list of texts, or a list of mappings. A column "input_ids"
            is used as it is, with "attention_mask" and "token_type_ids" where there are.
        text_column: the column of the texts.
        pooling: "cls", "last", "mean", "cls_mean" or "last_mean", as `pool` says; None: what
            `default_pooling` says.
        layers: numbers of hidden states; see `pooled_features`.
        batch_size: rows at once.
        max_length: most tokens of a row; None: as many as the model takes.
        cache_dir: a folder in which features are kept. The same call finds them there, and one that
            was broken off goes on. None: nothing is kept.
        progress: whether to show a bar.

    Returns:
        (N, D), float32, on the CPU, rows in the order of the dataset; layers behind one another.
        Rows of the same ids have the same features, bit by bit.

    Raises:
        TypeError: a model or a dataset of another kind.
        ValueError: an unknown pooling or layer, no rows, a missing column, a row without tokens, or
            a feature that is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
    body = backbone(model)
    pooling = default_pooling(model) if pooling is None else pooling
    check_pooling(pooling)
    rows = token_rows(dataset, tokenizer, body, text_column, max_length)
    request = {"pooling": pooling, "layers": list(layers), "batch_size": batch_size}
    if cache_dir is not None:
        found = backbone_fingerprint(model)
        request |= {name: found[name] for name in ("model_type", "attention", "digest")}
        request["tokens"] = rows.digest()
    cache = FeatureCache(cache_dir, request)
    order = rows.by_length()
    size = _SHARD * batch_size
    features = torch.empty(0)
    with (
        torch.no_grad(),
        evaluating(body),
        tqdm(total=len(order), desc="features", unit="row", disable=not progress) as bar,
    ):
        for shard, start in enumerate(range(0, len(order), size)):
            chosen = order[start : start + size]
            found = cache.load(shard, len(chosen))
            if found is None:
                parts = []
                for at in range(0, len(chosen), batch_size):
                    picked = chosen[at : at + batch_size]
                    batch = pooled_features(model, rows.batch(picked), pooling, layers).cpu()
                    _check_finite(batch, picked)
                    parts.append(batch)
                    bar.update(len(picked))
                found = torch.cat(parts)
                cache.save(shard, found)
            else:
                bar.update(len(chosen))
            if not shard:
                features = torch.empty(len(order), found.shape[1])
            features[chosen] = found
    # rows of the same ids may differ by rounding, having been padded differently
    return features[rows.first_of_equal()]


def _check_finite(features: Tensor, rows: Sequence[int]) -> None:
    wrong = sorted(rows[place] for place in (~features.isfinite().all(1)).nonzero()[:, 0].tolist())
    if wrong:
        raise ValueError(
            f"the features of rows {', '.join(map(str, wrong[:5]))} hold inf or NaN ({len(wrong)} "
            "in the batch): the model overflows in its precision; try bfloat16 or float32."
        )
