"""Tiny text models on disk, with a tokenizer, and a text to adopt on."""

import random

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = [f"w{index}" for index in range(40)]


def save_tokenizer(folder):
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(folder)


def save_model(model, folder):
    # large weights, so that the attention matters to the outputs
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def bert_folder(tmp_path):
    config = hf.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=42,
        pad_token_id=0,
        max_position_embeddings=64,
    )
    return save_model(hf.BertModel(config), tmp_path / "tiny-bert")


@pytest.fixture
def llama_folder(tmp_path):
    config = hf.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=42,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return save_model(hf.LlamaForCausalLM(config), tmp_path / "tiny-llama")


@pytest.fixture
def texts(tmp_path):
    choose = random.Random(0)
    path = tmp_path / "texts.txt"
    lines = [" ".join(choose.choices(WORDS, k=choose.randint(3, 20))) for _ in range(80)]
    path.write_text("\n".join([*lines, "", "   "]), encoding="utf-8")
    return path
