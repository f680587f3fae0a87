"""Tiny models of every type that has default targets, and how one is trained for a few steps."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.models import MODELS, Model

# the newest transformers has other names for it, which peft does not know yet
QUIET = pytest.mark.filterwarnings(r"ignore:`\w*gradient_checkpointing\w*` is deprecated")

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 50}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | _TOKENS
_ENCODER = _SIZES | {"intermediate_size": 48, "max_position_embeddings": 64}
_DECODER = _ENCODER | {"num_key_value_heads": 2}
_HEAD = {"head_dim": 8}

# what a layer of it has, and its number of layers, by name
COUNTS = {"t5": 3 * 2 + 2 * 2, "whisper": 2 * 2 + 3 * 2, "clip": 2 * 2 + 2 * 2}
NAMES = (
    "llama",
    "mistral-window",
    "gemma2-softcap",
    "gpt2",
    "bert",
    "t5",
    "whisper",
    "vit",
    "clip",
)
ROWS = [
    *(row for row in MODELS if row.name in NAMES),
    Model("roberta", "RobertaModel", lambda: hf.RobertaConfig(**_ENCODER), "encoder"),
    Model("xlm-roberta", "XLMRobertaModel", lambda: hf.XLMRobertaConfig(**_ENCODER), "encoder"),
    Model("electra", "ElectraModel", lambda: hf.ElectraConfig(**_ENCODER), "encoder"),
    Model(
        "distilbert",
        "DistilBertModel",
        lambda: hf.DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, **_TOKENS),
        "encoder",
    ),
    Model(
        "modernbert",
        "ModernBertModel",
        lambda: hf.ModernBertConfig(**_ENCODER, cls_token_id=1, sep_token_id=2),
        "encoder",
    ),
    Model(
        "opt",
        "OPTForCausalLM",
        lambda: hf.OPTConfig(
            **_SIZES, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32
        ),
        "decoder",
    ),
    Model("qwen2", "Qwen2ForCausalLM", lambda: hf.Qwen2Config(**_DECODER), "decoder"),
    Model("qwen3", "Qwen3ForCausalLM", lambda: hf.Qwen3Config(**_DECODER, **_HEAD), "decoder"),
    Model("gemma", "GemmaForCausalLM", lambda: hf.GemmaConfig(**_DECODER, **_HEAD), "decoder"),
    Model(
        "gemma3", "Gemma3ForCausalLM", lambda: hf.Gemma3TextConfig(**_DECODER, **_HEAD), "decoder"
    ),
    Model(
        "gemma3-images",
        "Gemma3ForConditionalGeneration",
        lambda: hf.Gemma3Config(
            text_config=_DECODER | _HEAD,
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "intermediate_size": 48,
                "image_size": 16,
                "patch_size": 4,
            },
            mm_tokens_per_image=4,
        ),
        "decoder",
    ),
    Model(
        "mt5",
        "MT5EncoderModel",
        lambda: hf.MT5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **_TOKENS),
        "encoder",
    ),
    Model("clip_text_model", "CLIPTextModel", lambda: hf.CLIPTextConfig(**_ENCODER), "encoder"),
    Model(
        "clip_vision_model",
        "CLIPVisionModel",
        lambda: hf.CLIPVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=4,
        ),
        "image",
    ),
]


def row(name: str) -> Model:
    """The model called `name`."""
    return next(one for one in ROWS if one.name == name)


def classifier(dtype: torch.dtype = torch.float32) -> Any:
    """A BERT with a head of three classes, the same at every call."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = hf.BertForSequenceClassification(hf.BertConfig(**_ENCODER, num_labels=3))
        for parameter in model.parameters():
            # large enough for what a layer does to matter
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model.to(dtype)


def randomize(model: Any) -> Any:
    """Give every parameter that is trained a random value."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


def logits(model: Any, dtype: torch.dtype | None = None) -> Tensor:
    """What a text model in evaluation mode says to three rows."""
    ids = torch.arange(3, 30).view(3, 9)
    training = model.training
    with torch.no_grad():
        out = model.eval()(input_ids=ids).logits
    model.train(training)
    return out
