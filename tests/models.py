"""Tiny real models of transformers: one row for each way in which attention reaches a method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.cases import CASES

LENGTH, PAD = 9, 3
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
_DECODER = _SIZES | {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: for the test's id.
        model_class: class name in transformers.
        config: makes its config, a new one each time.
        kind: "decoder", "encoder", "seq2seq", "image" or "two towers".
        softmax: the implementation that a softmax of ours must equal; "eager" if sdpa is refused.
        positions: "relative" without position_ids, "given" by them, or "fixed": absolute and not to
            be chosen.
        softcap: whether it caps its scores, which a Gaussian kernel refuses.
    """

    name: str
    model_class: str
    config: Callable[[], Any]
    kind: str
    softmax: str = "sdpa"
    positions: str = "relative"
    softcap: bool = False

    def build(self, attention: str | None = None) -> Any:
        """The model in eval mode, on softmax by default.

        The weights are the same at every call, and large enough for the attention to matter.
        """
        attention = attention or self.softmax
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            model = getattr(hf, self.model_class)._from_config(
                self.config(), attn_implementation=attention
            )
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.25)
        return model.eval()

    def inputs(self, padding: str | None = None) -> dict[str, Tensor]:
        """Two rows; with padding "left" or "right" the first row has PAD tokens less."""
        generator = torch.Generator().manual_seed(2)
        if self.kind == "image":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        ids = torch.randint(3, 50, (2, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        if padding is not None:
            mask[0, slice(0, PAD) if padding == "left" else slice(LENGTH - PAD, LENGTH)] = 0
        ids = ids.masked_fill(mask == 0, 0)
        given = {"input_ids": ids, "attention_mask": mask}
        if self.positions == "given":
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if self.name == "whisper":
            given = {"decoder_" + key: tensor for key, tensor in given.items()}
            given["input_features"] = torch.randn(2, 8, 24, generator=generator)
        elif self.kind == "seq2seq":
            given["decoder_input_ids"] = torch.randint(3, 50, (2, 5), generator=generator)
        elif self.kind == "two towers":
            given["pixel_values"] = torch.randn(2, 3, 16, 16, generator=generator)
        return given

    def run(self, model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> list[Tensor]:
        """Everything that depends on attention, at real tokens only."""
        output = model(**inputs, **kwargs)
        mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
        if self.kind == "image":
            return [output.last_hidden_state]
        if self.kind == "two towers":
            text, vision = output.text_model_output, output.vision_model_output
            return [text.last_hidden_state[mask.bool()], vision.last_hidden_state]
        if self.name == "t5":
            return [output.logits, output.encoder_last_hidden_state[mask.bool()]]
        if self.kind == "encoder":
            return [output.last_hidden_state[mask.bool()]]
        return [output.logits[mask.bool()]]


MODELS = [
    Model(
        "llama",
        "LlamaForCausalLM",
        lambda: hf.LlamaConfig(**_DECODER, **_TOKENS),
        "decoder",
        positions="given",
    ),
    Model(
        "mistral-window",
        "MistralForCausalLM",
        lambda: hf.MistralConfig(**_DECODER, **_TOKENS, sliding_window=4),
        "decoder",
        positions="given",
    ),
    Model(
        "gemma2-softcap",
        "Gemma2ForCausalLM",
        lambda: hf.Gemma2Config(
            **_DECODER,
            **_TOKENS,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=4,
            attn_logit_softcapping=2.0,
        ),
        "decoder",
        softmax="eager",
        positions="given",
        softcap=True,
    ),
    Model(
        "deepseek-v3-mla",
        "DeepseekV3ForCausalLM",
        lambda: hf.DeepseekV3Config(
            **_DECODER | _TOKENS | {"num_key_value_heads": 4},
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=6,
            first_k_dense_replace=2,
            rope_interleave=False,
        ),
        "decoder",
        positions="given",
    ),
    Model(
        "gpt2",
        "GPT2LMHeadModel",
        lambda: hf.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64, **_TOKENS
        ),
        "decoder",
        positions="given",
    ),
    Model(
        "bert",
        "BertModel",
        lambda: hf.BertConfig(
            **_SIZES, intermediate_size=48, max_position_embeddings=64, **_TOKENS
        ),
        "encoder",
        positions="given",
    ),
    Model(
        "t5",
        "T5ForConditionalGeneration",
        lambda: hf.T5Config(
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            vocab_size=50,
            decoder_start_token_id=0,
            **_TOKENS,
        ),
        "seq2seq",
        positions="fixed",
    ),
    Model(
        "whisper",
        "WhisperForConditionalGeneration",
        lambda: hf.WhisperConfig(
            vocab_size=50,
            num_mel_bins=8,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=12,
            max_target_positions=32,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **_TOKENS,
        ),
        "seq2seq",
        positions="fixed",
    ),
    Model(
        "vit",
        "ViTModel",
        lambda: hf.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=4,
        ),
        "image",
    ),
    Model(
        "swin-shifted",
        "SwinModel",
        lambda: hf.SwinConfig(
            image_size=16,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        "image",
    ),
    Model(
        "clip",
        "CLIPModel",
        lambda: hf.CLIPConfig(
            text_config={
                **_SIZES,
                "intermediate_size": 48,
                "max_position_embeddings": 32,
                **_TOKENS,
            },
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 48,
                "image_size": 16,
                "patch_size": 4,
            },
            projection_dim=16,
        ),
        "two towers",
        positions="fixed",
    ),
]
DECODERS = [model for model in MODELS if model.kind == "decoder"]


def model(name: str) -> Model:
    """The row called `name`."""
    return next(row for row in MODELS if row.name == name)


def served(rows: list[Model]) -> list[Any]:
    """Each of the rows with each method that takes it; `refused` has the others."""
    return [
        pytest.param(row, case, id=f"{row.name}-{case.name}")
        for row in rows
        for case in CASES
        if not (row.softcap and case.gaussian)
    ]


def refused(rows: list[Model]) -> list[Any]:
    """The rows with the methods that refuse them."""
    return [
        pytest.param(row, case, id=f"{row.name}-{case.name}")
        for row in rows
        for case in CASES
        if row.softcap and case.gaussian
    ]
