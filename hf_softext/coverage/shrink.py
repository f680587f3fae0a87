"""Shrink the numbers of a config, each by what its name says it is."""

import re
from dataclasses import dataclass
from typing import Any

from hf_softext.coverage.complete import complete
from hf_softext.coverage.layers import (
    by_layer,
    fewer_stages,
    is_depth,
    is_places,
    is_stages,
    kept_layers,
    whole_numbers,
)

_WIDTH = re.compile(
    r"hidden|embd|embed|d_model|d_ff|d_kv|dff|d_inner|d_head|dim|width|intermediate|channels|rank"
    r"|ffn|inner|planes|filters|features|n_embd|mlp|units|head_size|projection|proj_size"
    r"|codevector|upsample_groups|size$"
)
_NOT_WIDTH = re.compile(
    r"vocab|image|img|patch|kernel|stride|window|pool(?!er)|scale|group(?!s$)|^num_|_num_"
    r"|^n_(?!embd|inner)|max_|min_|layers|expan|ratio|rate|_id$|index|position|bucket|chunk"
    r"|block_size|block|batch|crop|context|cache|type|token|feat_|mel|tubelet|sampling|frame"
    r"|segment|resolution|seq|landmark|prob|dropout|eps|range|act|codebook_size|num_codebook"
    r"|depth$|temperature|mult|divisor|in_features|grid|top_k|ignore|kernel_dim|lags"
    r"|base_channels"
)
_HEADS = re.compile(
    r"(^|_)(n_heads?|num_heads|attention_heads|key_value_heads|num_key_heads|num_value_heads)$"
)
_IN_HEAD = re.compile(r"head_dim|d_kv|d_head|kv_channels|rotary_dim|rope_dim")
_PERIOD = re.compile(r"period|interval|frequency(?!_stride)|pattern|every|sparse_step")
_EXPERTS = re.compile(r"(num|n).*experts?$|moe_num_experts|zero_expert_num")
_TOKEN = re.compile(
    r"token_id$|token_index$|token_ids$|_token_id_|_id$|vocab_offset|_idx$|unk_index|mask_index"
    r"|pad_index"
)
# where the ids that do not fit into a smaller vocabulary go: to its end
_MOVED = 200
# sizes of inputs and of what is made of them, and counts that only cost time
_AT_MOST = {
    "image_size": 224,
    "mm_tokens_per_image": 16,
    "num_queries": 10,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "max_source_positions": 4096,
    "max_position_embeddings": 4096,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "num_dense_layers": 1,
}


@dataclass(frozen=True)
class Size:
    """How far to shrink.

    Attributes:
        factor: every width is divided by it.
        layers: keep one layer of each kind, and two at least; else keep all.
        heads: have fewer heads and keep their width; else keep the heads and shrink them.
        vocabulary: largest vocabulary; 0 keeps it.
    """

    factor: int = 8
    layers: bool = True
    heads: bool = False
    vocabulary: int = 1000


class Shrinker:
    """Shrinks a config and those in it; token ids that move are the same in all of them."""

    def __init__(self, size: Size):
        self.size = size
        self.tokens: dict[int, int] = {}

    def shrink(self, values: dict[str, Any]) -> dict[str, Any]:
        """What `to_dict` gives, shrunk."""
        kept = kept_layers(values) if self.size.layers else {}
        values = fewer_stages(values, kept)
        return complete({key: self._value(key, value, kept) for key, value in values.items()})

    def _value(self, key: str, value: Any, kept: dict[int, list[int]]) -> Any:
        if isinstance(value, dict):
            return self._mapping(key, value, kept)
        if isinstance(value, (list, tuple)):
            return self._sequence(key, list(value), kept)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._number(key, value, kept)
        return value

    def _mapping(self, key: str, value: dict[Any, Any], kept: dict[int, list[int]]) -> dict:
        if key in ("id2label", "label2id"):
            return value
        if by_layer(key, value):
            layers = {int(k): self._inner(x) for k, x in value.items()}
            depths = [depth for depth in sorted(kept) if depth > max(layers)]
            left = kept[depths[0]] if depths else range(max(layers) + 1)
            return {new: layers[old] for new, old in enumerate(left) if old in layers}
        return self.shrink(value) if all(isinstance(k, str) for k in value) else value

    def _inner(self, value: Any) -> Any:
        return self.shrink(value) if isinstance(value, dict) else value

    def _number(self, key: str, value: int, kept: dict[int, list[int]]) -> int:
        if is_depth(key, value):
            return len(kept[value]) if value in kept else value
        if self.size.layers:
            if _PERIOD.search(key) and value > 2:
                return 2
            if key.endswith("layer_offset") or key.startswith("first_k_dense"):
                return min(value, 1)
            if key == "num_kv_shared_layers":
                return 0
        if _EXPERTS.search(key):
            return min(value, 16)
        if key in _AT_MOST:
            return min(value, _AT_MOST[key])
        if "vocab" in key and "offset" not in key:
            return min(value, self.size.vocabulary or value)
        if _TOKEN.search(key):
            return self._token(value)
        return self._width(key, value)

    def _width(self, key: str, value: int) -> int:
        if self.size.heads and _HEADS.search(key):
            return max(value // self.size.factor, 1)
        if self.size.heads and _IN_HEAD.search(key):
            return value
        if value >= 2 * self.size.factor and value % self.size.factor == 0 and _is_width(key):
            return value // self.size.factor
        return value

    def _token(self, value: int) -> int:
        last = self.size.vocabulary - 1
        if not self.size.vocabulary or value <= last - _MOVED:
            return value
        return self.tokens.setdefault(value, last - len(self.tokens) % _MOVED)

    def _sequence(self, key: str, value: list[Any], kept: dict[int, list[int]]) -> list[Any]:
        places = is_places(key, value)
        if len(value) in kept and not places:
            value = [value[i] for i in kept[len(value)]]
        if not value or not whole_numbers(value):
            return [self._inner(x) for x in value]
        if _TOKEN.search(key):
            return [self._token(x) for x in value]
        depths = [depth for depth in sorted(kept) if depth >= max(value)]
        if places and depths:
            # as far into the model as before; the depth itself means the last output
            old, new = depths[0], len(kept[depths[0]])
            return sorted({min(x * new // old, new) for x in value})
        if is_stages(key) and self.size.layers and len(value) < 8:
            return [min(x, 2) for x in value]
        if all(x % self.size.factor == 0 or x <= 4 for x in value) and _is_width(key):
            return [x // self.size.factor if x >= 2 * self.size.factor else x for x in value]
        return value


def _is_width(key: str) -> bool:
    return bool(_WIDTH.search(key)) and not _NOT_WIDTH.search(key)
