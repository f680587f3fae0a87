"""Quantize a language model to 2 bits, mend it with a LoRA adapter, make a plain model of both.

    python examples/quantize_and_adapt.py

Needs nothing from the hub: a small Llama learns bytes of Shakespeare first, in half a minute.
"""

import math
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_softext import BaqConfig
from hf_softext.demo.corpora import shakespeare
from hf_softext.demo.language_model import VARIANTS, Budget, build, encode, train
from hf_softext.training.causal_lm.data import Windows
from hf_softext.training.causal_lm.extrapolation import loss_by_length

# the model is so small that handing work to threads takes longer than the work
torch.set_num_threads(1)
train_text, test_text = map(encode, shakespeare())
LENGTH = 64


def perplexity(model: torch.nn.Module) -> float:
    """On held-out text, in windows of the training length."""
    return math.exp(loss_by_length(model, test_text[:16384], [LENGTH])[LENGTH])


with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    original = build(VARIANTS[0])
    train(original, Budget(length=LENGTH, steps=150, batch=32, test_bytes=0), root / "trainer")
    original.save_pretrained(root / "original")
    print(f"original         perplexity {perplexity(original):.3f}")

    # the switch that transformers users know; bytes are the tokens here, so no tokenizer is needed
    windows = train_text[: 128 * LENGTH].view(128, LENGTH)
    config = BaqConfig(bits=2, dataset=windows, nsamples=128, seqlen=LENGTH)
    model = AutoModelForCausalLM.from_pretrained(root / "original", quantization_config=config)
    model.save_pretrained(root / "quantized")
    quantized = AutoModelForCausalLM.from_pretrained(root / "quantized")
    before, after = (
        (root / name / "model.safetensors").stat().st_size for name in ("original", "quantized")
    )
    print(f"2 bits           perplexity {perplexity(quantized):.3f}   {before} -> {after} bytes")

    # the planes stay as they are; the adapter's two small matrices beside each of them learn, and
    # here also what the original had not learned yet
    torch.manual_seed(0)
    adapted = get_peft_model(quantized, LoraConfig(r=8, target_modules="all-linear"))
    arguments = TrainingArguments(
        output_dir=str(root / "trainer"),
        max_steps=100,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    Trainer(model=adapted, args=arguments, train_dataset=Windows(train_text, LENGTH)).train()
    print(f"2 bits + LoRA    perplexity {perplexity(adapted):.3f}")
    adapted.save_pretrained(root / "adapter")

    # an adapter can be merged into plain weights only
    plain = AutoModelForCausalLM.from_pretrained(root / "quantized").dequantize()
    merged = PeftModel.from_pretrained(plain, root / "adapter").merge_and_unload()
    print(f"plain, merged    perplexity {perplexity(merged):.3f}")
