"""What a language model is worth at lengths that it was not trained on."""

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_softext.training.causal_lm.data import Windows
from hf_softext.training.causal_lm.passkey import PasskeyTask

# positions whose logits are widened to float32 at a time
_CHUNK = 1024


@dataclass(frozen=True)
class PasskeyScore:
    """How often a hidden number was found again.

    Attributes:
        length: tokens in a window.
        depth: share of the text before the number.
        accuracy: share of the windows in which all of the number's tokens were right.
        windows: how many there were.
    """

    length: int
    depth: float
    accuracy: float
    windows: int


def loss_by_length(
    model: Any,
    tokens: Tensor,
    lengths: Sequence[int],
    *,
    amount: int | None = None,
    batch_tokens: int = 4096,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> dict[int, float]:
    r"""Mean cross-entropy for each length of window, in nats per predicted token.

    $$\ell(n) = -\frac{1}{W (n - 1)} \sum_{w=1}^{W} \sum_{i=2}^{n} \log p(x_{w,i} \mid x_{w,1}
    \ldots x_{w,i-1})$$

    over the W consecutive windows of n tokens. Every length is measured on the same text, cut to a
    whole number of the longest windows.

    Args:
        model: a causal language model of transformers.
        tokens: (N,) token ids of held-out text.
        lengths: tokens in a window, 2 or more and at most N.
        amount: use about so many of the tokens; all by default, and always one longest window.
        batch_tokens: tokens in a batch; a batch is one window where that is longer. Changes memory
            and speed, not the result.
        accelerator: that of a run on several processes, all of which must call this.
        progress: show a bar.

    Returns:
        The loss for each length.

    Raises:
        ValueError: a length without a window in the text.
    """
    longest = max(lengths)
    if min(lengths) < 2 or longest > len(tokens):
        raise ValueError(
            f"lengths={list(lengths)} must be from 2 to the {len(tokens)} tokens of the text."
        )
    used = min(len(tokens), max(amount or len(tokens), longest)) // longest * longest
    losses = {}
    with _bar("loss by length", used * len(lengths), progress) as bar:
        for length in lengths:
            windows = Windows(tokens[:used], length)
            size = batch_tokens // length
            summed = _measure(model, windows, _summed_loss, size, accelerator, bar)
            losses[length] = summed.sum().item() / (len(windows) * (length - 1))
    return losses


def passkey_accuracy(
    model: Any,
    tokens: Tensor,
    task: PasskeyTask,
    lengths: Sequence[int],
    *,
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    samples: int = 20,
    seed: int = 0,
    batch_tokens: int = 4096,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> list[PasskeyScore]:
    """How often a model repeats a number that is hidden in held-out text.

    One forward pass tells what greedy decoding would write: it writes the whole number exactly if
    every token of it is the most likely one after the right ones before.

    Args:
        model: a causal language model of transformers.
        tokens: (N,) token ids of held-out text.
        task: the task in the tokens of the model.
        lengths: tokens in a window, at least `task.shortest` and at most N.
        depths: where the number is hidden, as a share of the text.
        samples: windows for each length and depth, with different numbers and text.
        seed: of the numbers and the text.
        batch_tokens: as for `loss_by_length`.
        accelerator: as for `loss_by_length`.
        progress: show a bar.

    Returns:
        A score for each length and depth.
    """
    scores = []
    places = [(length, depth) for length in lengths for depth in depths]
    total = samples * sum(length for length, _ in places)
    with _bar("passkeys", total, progress) as bar:
        for length, depth in places:
            choose = random.Random(f"{seed} {length} {depth}")
            starts = [choose.randint(0, len(tokens) - length) for _ in range(samples)]
            rows = [
                task.window(tokens[start : start + length].long(), choose, depth)
                for start in starts
            ]
            right = _measure(model, rows, _all_right, batch_tokens // length, accelerator, bar)
            scores.append(PasskeyScore(length, depth, right.double().mean().item(), samples))
    return scores


def _bar(title: str, tokens: int, shown: bool) -> Any:
    return tqdm(total=tokens, desc=title, unit=" tokens", unit_scale=True, disable=not shown)


@torch.no_grad()
def _measure(
    model: Any,
    rows: Any,
    measure: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    accelerator: Accelerator | None,
    bar: Any,
) -> Tensor:
    """One number for each row, from its logits and labels, which are shifted to each other."""
    loader: Any = DataLoader(rows, batch_size=max(1, batch_size))
    if accelerator is not None:
        loader = accelerator.prepare_data_loader(loader)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = []
    for batch in loader:
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        # as in training: a model that was only loaded does not switch to half precision by itself
        with nullcontext() if accelerator is None else accelerator.autocast():
            logits = model(input_ids=ids, use_cache=False)["logits"]
        value: Any = measure(logits[:, :-1], labels[:, 1:])
        found.append(value if accelerator is None else accelerator.gather_for_metrics(value))
        bar.update(len(found[-1]) * ids.shape[1])
    model.train(was_training)
    return torch.cat(found)


def _summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    parts = zip(logits.split(_CHUNK, dim=1), labels.split(_CHUNK, dim=1), strict=True)
    losses = [
        F.cross_entropy(part.float().transpose(1, 2), target, reduction="none").double().sum(dim=1)
        for part, target in parts
    ]
    return torch.stack(losses).sum(dim=0)


def _all_right(logits: Tensor, labels: Tensor) -> Tensor:
    return ((logits.argmax(dim=-1) == labels) | (labels == -100)).all(dim=1)
