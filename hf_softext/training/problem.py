"""What kind of problem a model is for, and where its labels stand."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.models.auto import modeling_auto as auto

_CAUSAL = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_TOKENS = {
    name
    for mapping in (
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    )
    for name in mapping.values()
}
_BY_TYPE = {
    "single_label_classification": {"multiclass", "binary"},
    "multi_label_classification": {"multilabel"},
    "regression": {"regression"},
}


def bare(model: Any) -> Any:
    """The model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _names(model: Any) -> set[str]:
    """Of the class and those that it is made from."""
    return {kind.__name__ for kind in type(model).__mro__}


def is_causal(model: Any) -> bool:
    """Whether the label of a position is the next token, in a model without an encoder."""
    model = bare(model)
    encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    names = _names(model)
    known = bool(names & _CAUSAL) or any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in names)
    return known and not encoder


def problem_kinds(model: Any) -> frozenset[str]:
    """The kinds of problem that a model may be trained for, in the words of `list_losses`.

    A language model or a tagger has "token"; a classifier what its `problem_type` and number of
    labels leave open; of a class that transformers does not know, everything.
    """
    inner = bare(model)
    config = getattr(inner, "config", None)
    if is_causal(model) or _names(inner) & _TOKENS:
        return frozenset({"token"})
    if config is None or not hasattr(config, "num_labels"):
        return frozenset({"binary", "multiclass", "multilabel", "regression", "token"})
    kinds = _BY_TYPE.get(getattr(config, "problem_type", None) or "")
    if kinds is None:
        kinds = {"multiclass", "multilabel", "binary", "regression"}
    if config.num_labels > 2:
        kinds = kinds - {"binary"}
    if config.num_labels == 1:
        kinds = kinds - {"multiclass", "multilabel"}
    return frozenset(kinds)


def aligned_labels(
    inputs: Mapping[str, Any], causal: bool, ignore_index: int = -100
) -> Tensor | None:
    """The label of each position, in its place.

    Args:
        inputs: a batch. `shift_labels` are aligned already and win over `labels`.
        causal: whether the label of a position is the next token.
        ignore_index: the label of what does not count.

    Returns:
        The labels in the shape of the batch's; the last position of a causal model's does not
        count.
    """
    if inputs.get("shift_labels") is not None:
        return inputs["shift_labels"]
    labels = inputs.get("labels")
    if labels is None or not causal:
        return labels
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)
