"""A vision transformer of one layer on handwritten digits: softmax against SOFT and SOFT++.

    python examples/soft_vit_digits.py
    python examples/soft_vit_digits.py --seeds 1 --epochs 24

scikit-learn's digits, 8 x 8 pixels, one token a pixel and a class token. The low-rank rows see them
through 16 landmarks, means of 2 x 2 pixels, and the class token. Every row starts from the same
weights and sees the same batches; two seeds, which are too few to call small differences real. The
last row learns its landmarks too, a convolution, and needs more epochs for it.
"""

import argparse
import time
from statistics import mean

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ViTConfig, ViTForImageClassification

from hf_softext import apply_attention, convert_to_soft

LOW_RANK = {"mode": "low_rank", "landmarks": 16, "grid": [8, 8], "tie": "query"}
ROWS = {
    "softmax": lambda model: model,
    "soft, exact": lambda model: apply_attention(model, "soft"),
    "soft_norm, exact": lambda model: apply_attention(model, "soft_norm"),
    "soft, low rank": lambda model: apply_attention(model, "soft", **LOW_RANK),
    "soft_norm, low rank (SOFT++)": lambda model: apply_attention(model, "soft_norm", **LOW_RANK),
    "SOFT++'s own module": lambda model: convert_to_soft(model, ratio=2, conv_size=3),
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--epochs", type=int, default=8)
given = parser.parse_args()
# the model is so small that handing work to threads takes longer than the work
torch.set_num_threads(1)

digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = train_test_split(
    torch.arange(len(labels)), test_size=0.2, random_state=0, stratify=digits.target
)


def run(row: str, seed: int) -> tuple[float, float]:
    """Train once; accuracy on the test images, and seconds of training."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=1,
        num_channels=1,
        num_labels=10,
    )
    model = ROWS[row](ViTForImageClassification(config)).train()
    steps = given.epochs * (len(train) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    batches = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in range(given.epochs):
        for batch in train[torch.randperm(len(train), generator=batches)].split(32):
            if len(batch) < 32:
                continue
            loss = F.cross_entropy(model(pixels[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        guessed = model.eval()(pixels[test]).logits.argmax(-1)
    return (guessed == labels[test]).float().mean().item(), seconds


print(f"{'attention':30} {'accuracy':>8} {'seconds':>7}   accuracy by seed")
for row in ROWS:
    results = [run(row, seed) for seed in range(given.seeds)]
    each = " ".join(f"{accuracy:.3f}" for accuracy, _ in results)
    average, seconds = (mean(column) for column in zip(*results, strict=True))
    print(f"{row:30} {average:8.3f} {seconds:7.1f}   {each}", flush=True)
