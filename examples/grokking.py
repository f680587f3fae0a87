"""Softmax collapse, and grokking in 200 steps: addition modulo 113, learned from 40 % of it.

    python examples/grokking.py
    python examples/grokking.py --seed 1 --plot grokking.png

A network without regularisation soon fits its training pairs and knows nothing of the others.
`perp_grad`, one line behind the optimizer, makes it learn the addition itself. Strong weight decay
does that too, a little later: the sceptic's baseline is the best of 1, 3, 5, 7, 10 and 15 for this
number of steps (`--weight-decay`). Plain AdamW also runs out of precision, in half precision first;
in float32 not within 2,000 steps. One CPU core needs half a minute. `--plot` needs matplotlib.

The setting is that of L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of
Numerical Stability", 2025, arXiv 2501.04697.
"""

import argparse
from pathlib import Path

MODULUS, TRAIN_SHARE, WIDTH, LEARNING_RATE, EVERY = 113, 0.4, 200, 0.01, 25

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--seed", type=int, default=0, help="of the split and of the weights")
parser.add_argument("--steps", type=int, default=200, help="full-batch steps of each run")
parser.add_argument("--weight-decay", type=float, default=7.0, help="of the second run")
parser.add_argument("--plot", type=Path, help="draw the accuracies: a .png or .svg")
given = parser.parse_args()

# after the arguments, so that --help answers at once
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hf_softext.functional import log_stablemax  # noqa: E402
from hf_softext.functional.softmax_collapse import softmax_collapse  # noqa: E402
from hf_softext.optim import perp_grad  # noqa: E402


class Network(nn.Module):
    """226-200-200-113 without biases; the first layer's input is two ones, so it is a lookup."""

    def __init__(self):
        super().__init__()
        self.first = nn.EmbeddingBag(2 * MODULUS, WIDTH, mode="sum")
        nn.init.uniform_(self.first.weight, -((2 * MODULUS) ** -0.5), (2 * MODULUS) ** -0.5)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)
        self.third = nn.Linear(WIDTH, MODULUS, bias=False)

    def forward(self, pairs: Tensor) -> Tensor:
        """(N, 2) of a and b + 113 to logits (N, 113) of a + b."""
        return self.third(self.second(self.first(pairs).relu()).relu())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def train(weight_decay: float, perpendicular: bool) -> tuple[list[tuple], Tensor, Tensor]:
    """Rows of (step, train accuracy, test accuracy); the training logits and labels at the end."""
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    labels = pairs.sum(dim=-1) % MODULUS
    pairs = pairs + torch.tensor([0, MODULUS])
    torch.manual_seed(given.seed)
    order = torch.randperm(len(pairs))
    seen, unseen = order.tensor_split([int(TRAIN_SHARE * len(pairs))])
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    if perpendicular:
        perp_grad(optimizer)
    curve = []
    for step in range(given.steps + 1):
        logits = network(pairs[seen])
        if step % EVERY == 0:
            with torch.no_grad():
                test = accuracy(network(pairs[unseen]), labels[unseen])
            curve.append((step, accuracy(logits, labels[seen]), test))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[seen]).backward()
        optimizer.step()
    return curve, logits.detach(), labels[seen]


def zero_gradients() -> None:
    """What is left of the gradient of one confident row."""
    print("Gradient of the loss at the logits [200, 0, 0] with label 0")
    for name, dtype, log_probabilities in (
        ("cross-entropy, float32", torch.float32, F.log_softmax),
        ("cross-entropy, float64", torch.float64, F.log_softmax),
        ("StableMax, float32", torch.float32, log_stablemax),
    ):
        logits = torch.tensor([200.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
        (-log_probabilities(logits, dim=-1)[0]).backward()
        assert logits.grad is not None
        print(f"  {name:24}" + "".join(f"{value:12.1e}" for value in logits.grad.tolist()))


def draw(runs: dict[str, tuple], path: Path) -> None:
    """Train and test accuracy over the steps, one panel a run."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(10, 3.2), sharey=True, layout="tight")
    for panel, (name, (curve, _, _)) in zip(panels, runs.items(), strict=True):
        steps, seen, unseen = zip(*curve, strict=True)
        panel.plot(steps, [100 * share for share in seen], "--", color="0.5", label="training")
        panel.plot(steps, [100 * share for share in unseen], color="C0", label="test")
        panel.set(title=name, xlabel="step", ylim=(-3, 103))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend(loc="center right")
    figure.savefig(path, dpi=150)


zero_gradients()
runs = {
    "AdamW": train(0.0, perpendicular=False),
    f"AdamW, weight decay {given.weight_decay:g}": train(given.weight_decay, perpendicular=False),
    "AdamW + perp_grad": train(0.0, perpendicular=True),
}
print(f"\nAccuracy in %, training / test, seed {given.seed}")
print("  step" + "".join(f"{name:>26}" for name in runs))
for points in zip(*(curve for curve, _, _ in runs.values()), strict=True):
    cells = (f"{100 * seen:.1f} / {100 * unseen:.1f}" for _, seen, unseen in points)
    print(f"{points[0][0]:6}" + "".join(f"{cell:>26}" for cell in cells))
reached = [
    next((step for step, _, unseen in curve if unseen > 0.99), "never")
    for curve, _, _ in runs.values()
]
print("\nFirst step shown whose test accuracy is above 99 %:", *reached, sep="  ")
print(f"\nTraining rows whose cross-entropy is exactly 0 at step {given.steps}, in %")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
print(f"  {'computed in':26}" + "".join(f"{str(dtype)[6:]:>12}" for dtype in DTYPES))
for name, (_, logits, labels) in runs.items():
    counts = [softmax_collapse(logits, labels, dtype=dtype).zero_loss for dtype in DTYPES]
    cells = (f"{100 * count.item() / len(labels):.1f}" for count in counts)
    print(f"  {name:26}" + "".join(f"{cell:>12}" for cell in cells))
if given.plot:
    draw(runs, given.plot)
    print(f"\n{given.plot}")
