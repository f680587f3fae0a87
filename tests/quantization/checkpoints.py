"""Tiny models of every kind that is quantized, and their checkpoints."""

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.register import register_baq

register_baq()

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 50}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | _TOKENS
_LLAMA = _SIZES | {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_MOE = _LLAMA | {"num_experts_per_tok": 2}
_OPT = _SIZES | {"ffn_dim": 48, "max_position_embeddings": 64}

# name -> class, config
MODELS: dict[str, tuple[type[hf.PreTrainedModel], Any]] = {
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**_LLAMA)),
    "tied-llama": (
        hf.LlamaForCausalLM,
        lambda: hf.LlamaConfig(**_LLAMA, tie_word_embeddings=True, attention_bias=True),
    ),
    "opt": (
        hf.OPTForCausalLM,
        lambda: hf.OPTConfig(**_OPT, word_embed_proj_dim=24, do_layer_norm_before=False),
    ),
    "gpt2": (
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **_TOKENS),
    ),
    "bert": (
        hf.BertForSequenceClassification,
        lambda: hf.BertConfig(**_SIZES, intermediate_size=48, max_position_embeddings=64),
    ),
    "t5": (
        hf.T5ForConditionalGeneration,
        lambda: hf.T5Config(
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
            **_TOKENS,
        ),
    ),
    "mixtral": (hf.MixtralForCausalLM, lambda: hf.MixtralConfig(**_MOE, num_local_experts=4)),
    "qwen3-moe": (
        hf.Qwen3MoeForCausalLM,
        lambda: hf.Qwen3MoeConfig(**_MOE, num_experts=4, moe_intermediate_size=24, head_dim=8),
    ),
}


@functools.cache
def dense(name: str) -> hf.PreTrainedModel:
    """A model in full precision, the same at every call; not to be changed."""
    kind, config = MODELS[name]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = kind(config())
        for parameter in model.parameters():
            # large enough for what a layer does to matter
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.eval()


def rtn(**options: Any) -> BaqConfig:
    """Needs no data."""
    return BaqConfig(**{"bits": 6, "solver": "rtn"} | options)


def gptq(**options: Any) -> BaqConfig:
    """Calibrated with a few sequences of token ids."""
    ids = torch.randint(3, 50, (8, 16), generator=torch.Generator().manual_seed(3)).tolist()
    given = {"bits": 6, "dataset": ids, "nsamples": 8, "seqlen": 16}
    return BaqConfig(**given | options)


def quantize(name: str, folder: Path, config: BaqConfig | None = None, **options: Any) -> Any:
    """Through the door that users take: full precision from a folder, quantized while loading."""
    if config is None and not options:
        return copy.deepcopy(_quantized(name))
    source = folder / f"full-{name}"
    if not source.exists():
        dense(name).save_pretrained(source)
    return MODELS[name][0].from_pretrained(source, quantization_config=config or rtn(), **options)


@functools.cache
def _quantized(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return quantize(name, Path(folder), rtn())


def saved(name: str, folder: Path) -> Path:
    """A quantized checkpoint."""
    quantize(name, folder).save_pretrained(folder / "quantized")
    return folder / "quantized"


def load(name: str, folder: Path, **options: Any) -> Any:
    """The checkpoint in a folder, with nothing missing and nothing left over."""
    model, info = MODELS[name][0].from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def logits(model: Any, rows: int = 2) -> Tensor:
    """What a model says to fixed token ids."""
    ids = torch.randint(3, 50, (rows, 9), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": ids.to(model.device)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"][:, :5]
    with torch.no_grad():
        return model(**given).logits


def quantized_modules(model: torch.nn.Module) -> dict[str, BaqLinear]:
    """By name."""
    return {name: one for name, one in model.named_modules() if isinstance(one, BaqLinear)}
