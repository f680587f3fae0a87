"""Made-up data and untrained models, to try `adapters.py` in seconds."""

import torch
from _adapter_fit import Task
from _adapter_lm import LanguageTask
from _adapter_texts import Rows, TextTask
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

CLASSES, WIDTH = 4, 32


def tiny_texts(seed: int, rows: int = 24) -> Rows:
    """Texts of 3 to 7 tokens, near the corner of their class."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 8, (rows,), generator=drawn)
    labels = torch.arange(rows) % CLASSES
    states = torch.randn(int(lengths.sum()), WIDTH, generator=drawn)
    states += 2 * torch.eye(CLASSES, WIDTH)[labels.repeat_interleave(lengths)]
    return Rows(states, lengths, labels)


def tiny_tasks() -> dict[str, Task]:
    """One of each kind that the program has, under the same names."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
    )
    layers: nn.ModuleList = BertModel(config, add_pooling_layer=False).encoder.layer
    draws = [tiny_texts(seed) for seed in range(3)]
    plan = {"epochs": 1, "batch": 8}
    found: dict[str, Task] = {
        name: TextTask(name, layers, draws, tiny_texts(3), tiny_texts(4), plan)
        for name in ("clinc150", "banking77")
    }
    found["python"] = LanguageTask(
        "python",
        tiny_llama(),
        _counting(400),
        _counting(64).view(4, 16),
        _counting(128).view(8, 16),
        {"steps": 3, "batch": 4, "length": 16},
    )
    return found


def tiny_llama() -> LlamaForCausalLM:
    """Two layers over 256 bytes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )


def _counting(count: int) -> Tensor:
    return torch.arange(count) % 7
