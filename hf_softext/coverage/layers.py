"""Which layers of a config to keep."""

import re
from typing import Any

_DEPTH = re.compile(r"(^|_)(n_layers?|layers?|depth|num_blocks|n_blocks|hidden_layers)$")
_NOT_DEPTH = re.compile(
    r"adapter|feat_extract|postnet|prenet|look|insert|feature_layer|kv_shared|nextn|predict"
    r"|global_attn|extract"
)
_STAGES = re.compile(r"^(depths|layers|num_blocks|stage_num_blocks|num_layers|encoder_depths)$")
_PLACES = re.compile(r"index|indices|idx|layers|hook|_ids$")
# kinds of layers that are kept at most
_KINDS = 6


def kept_layers(values: dict[str, Any]) -> dict[int, list[int]]:
    """For each depth of a config, the layers to keep.

    One layer of each kind, as lists and maps with an entry for each layer tell them apart; at
    least two; and at least as many as there are outputs to take from them.
    """
    lists = [value for key, value in values.items() if is_list(value) and not is_places(key, value)]
    maps = [value for key, value in values.items() if by_layer(key, value)]
    outputs = [value for key, value in values.items() if is_places(key, value)]
    fewest = max(2, *map(len, [values.get("out_features") or [], *outputs]))
    # where a list says how deep each stage is, the number of stages is no depth
    stages = {len(value) for key, value in values.items() if is_list(value) and is_stages(key)}
    kept = {}
    for depth in {value for key, value in values.items() if is_depth(key, value)} - stages:
        kinds = [
            str(
                [entries[i] for entries in lists if len(entries) == depth]
                + [part.get(i, part.get(str(i))) for part in maps]
            )
            for i in range(depth)
        ]
        first = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:_KINDS]
        others = [i for i in range(depth) if i not in first]
        kept[depth] = sorted(first + others[: max(fewest - len(first), 0)])
    return kept


def fewer_stages(values: dict[str, Any], kept: dict[int, list[int]]) -> dict[str, Any]:
    """A backbone that counts each layer as a stage gives out the last ones that are left."""
    names = values.get("stage_names") or []
    if len(names) - 1 not in kept:
        return values
    layers = len(kept[len(names) - 1])
    outputs = min(len(values.get("out_features") or [""]), layers)
    values = {
        key: value for key, value in values.items() if key not in ("stage_names", "out_indices")
    }
    return {**values, "out_features": [f"stage{i + 1}" for i in range(layers - outputs, layers)]}


def is_depth(key: str, value: Any) -> bool:
    """Whether a number is how many layers there are."""
    number = isinstance(value, int) and not isinstance(value, bool) and value > 2
    return number and bool(_DEPTH.search(key)) and not _NOT_DEPTH.search(key)


def is_stages(key: str) -> bool:
    """Whether a list says how many layers each stage has."""
    return bool(_STAGES.search(key))


def is_places(key: str, value: Any) -> bool:
    """Whether a list names a few layers by their number."""
    return (
        is_list(value)
        and len(value) <= 8
        and bool(_PLACES.search(key))
        and whole_numbers(value)
        and list(value) == sorted(set(value))
    )


def by_layer(key: str, value: Any) -> bool:
    """Whether a dict has something for each of some layers, by their number."""
    return (
        isinstance(value, dict)
        and key != "id2label"
        and bool(value)
        and all(str(k).isdigit() for k in value)
    )


def is_list(value: Any) -> bool:
    """Whether a value is a list as configs have them."""
    return isinstance(value, (list, tuple))


def whole_numbers(value: Any) -> bool:
    """Whether everything in a list is a whole number."""
    return all(isinstance(x, int) and not isinstance(x, bool) for x in value)
