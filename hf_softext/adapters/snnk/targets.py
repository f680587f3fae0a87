"""Where an adapter goes when nothing is said: what attention and the feed-forward block put out."""

_BERT = ["output.dense"]  # of both: attention.output.dense, output.dense
_LLAMA = ["o_proj", "down_proj"]
_BART = ["out_proj", "fc2"]
_T5 = ["o", "wo"]

TARGETS: dict[str, list[str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": ["out_lin", "lin2"],
    "modernbert": ["Wo"],
    "gpt2": ["c_proj"],
    "opt": _BART,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3": _LLAMA,
    "gemma3_text": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    # the last is that of older releases of transformers
    "vit": ["o_proj", "fc2", *_BERT],
    "clip": _BART,
    "clip_text_model": _BART,
    "clip_vision_model": _BART,
    "whisper": _BART,
}
