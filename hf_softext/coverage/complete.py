"""What the defaults of some configs leave open, or what does not fit together in them."""

from typing import Any

# numbers that some class needs and whose default is None
_OPEN = {
    "prediction_length": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "attn_layer_indices": [1],
}


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A config's dict with which its model can be built and run."""
    values = dict(values)
    for key, value in _OPEN.items():
        if key in values and values[key] is None:
            values[key] = value
    if "vocab_size" in values:
        # sequence classification needs one for a batch of several rows
        values["pad_token_id"] = values.get("pad_token_id") or 0
    windows = "sliding_attention" in (values.get("layer_types") or ())
    if windows and values.get("sliding_window", 0) is None:
        values["sliding_window"] = 512
    _match_widths(values)
    _set_heads(values)
    _replace_timm(values)
    return values


def _match_widths(values: dict[str, Any]) -> None:
    """Let the image part give what the text part takes."""
    vision, text = values.get("vision_config"), values.get("text_config")
    if not isinstance(vision, dict) or not isinstance(text, dict) or "hidden_size" not in text:
        return
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = text["hidden_size"]
    if {"embed_dim", "hidden_size"} <= set(vision):
        # the width inside has a name of its own
        vision["hidden_size"] = text["hidden_size"]


def _set_heads(values: dict[str, Any]) -> None:
    """Head dims that a rotary embedding in two directions takes, with fewer heads if need be."""
    hidden = next((values[key] for key in ("embed_dim", "hidden_size") if key in values), None)
    name = next((key for key in ("num_attention_heads", "num_heads") if key in values), None)
    heads = values.get(name or "")
    if not isinstance(hidden, int) or not isinstance(heads, int) or not hidden or not heads:
        return
    if not values.get("head_dim") and values.get("num_key_value_heads") in (None, heads):
        divisors = [n for n in range(heads, 0, -1) if hidden % n == 0]
        fitting = [n for n in divisors if hidden // n % 4 == 0] or divisors
        keys = [key for key in (name, "num_key_value_heads") if key and values.get(key)]
        values.update(dict.fromkeys(keys, fitting[0]))
    heads = values.get("num_attention_heads")
    if isinstance(values.get("hidden_size"), int) and isinstance(heads, int):
        derived = {"head_dim": values["hidden_size"] // heads, "num_key_value_heads": heads}
        values.update(
            {key: value for key, value in derived.items() if values.get(key, value) is None}
        )


def _replace_timm(values: dict[str, Any]) -> None:
    """What surrounds a backbone of the package timm runs without that package on another."""
    backbone = values.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("model_type") == "timm_backbone":
        outputs = len(backbone.get("out_indices") or [4])
        values["backbone_config"] = {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage1", "stage2", "stage3", "stage4"][-max(outputs, 1) :],
        }
        values["use_timm_backbone"] = False
