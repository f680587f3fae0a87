"""Tiny models that call their blocks in different ways."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 50}
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
_DECODER = {**_TOKENS, **_SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}
_DECODER["num_hidden_layers"] = 3

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=64, **_TOKENS)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            word_embed_proj_dim=8,
            max_position_embeddings=64,
            **_TOKENS,
        )
    ),
    "bert": lambda: hf.BertForMaskedLM(
        hf.BertConfig(**_TOKENS, **_SIZES, num_hidden_layers=3, max_position_embeddings=64)
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=2,
            decoder_start_token_id=0,
            **_TOKENS,
        )
    ),
    # local and global attention
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **_DECODER,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    # later blocks take keys and values of earlier ones
    "gemma3n": lambda: hf.Gemma3nForCausalLM(
        hf.Gemma3nTextConfig(
            **{**_DECODER, "num_hidden_layers": 4},
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=50,
            hidden_size_per_layer_input=4,
            laurel_rank=4,
            activation_sparsity_pattern=[0.0] * 4,
        )
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2)
    ),
    # one block that runs three times
    "albert": lambda: hf.AlbertForMaskedLM(
        hf.AlbertConfig(
            **_TOKENS, **_SIZES, embedding_size=8, num_hidden_layers=3, max_position_embeddings=64
        )
    ),
}


def build(name: str) -> Any:
    """The model with weights large enough for all of its parts to matter, the same each time."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = MODELS[name]()
        for own, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            elif own.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def token_ids(count: int = 5, seed: int = 0) -> list[torch.Tensor]:
    """Sequences of several lengths, longer than a window of attention."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [9, 33, 20, 17, 26]
    return [
        torch.randint(3, 50, (1, lengths[index % 5]), generator=generator) for index in range(count)
    ]


def inputs(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    given = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    return given
