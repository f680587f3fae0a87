"""Running text as windows of tokens: one stream, its last part held out."""

import random
from typing import Any

import torch
from datasets import Dataset as Table
from torch import Tensor
from torch.utils.data import Dataset

from hf_softext.training.causal_lm.passkey import PasskeyTask


def token_stream(documents: Table, tokenizer: Any) -> Tensor:
    """All documents one after the other, each followed by the end-of-text token if there is one.

    Args:
        documents: a table with the column "text".
        tokenizer: any tokenizer of transformers. It is not asked for its special tokens, so that
            windows start without one wherever they are cut.

    Returns:
        (N,) int32 token ids. They lie in memory, four bytes a token.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(batch: dict[str, list]) -> dict[str, list]:
        rows = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [[*row, *end] for row in rows]}

    rows = documents.map(
        encode, batched=True, batch_size=100, remove_columns=["text"], desc="tokenizing"
    )
    chunks = rows.data.column("input_ids").chunks
    parts = [torch.tensor(chunk.flatten().to_numpy(), dtype=torch.int32) for chunk in chunks]
    return torch.cat(parts)


def split_stream(tokens: Tensor, held_out: float, length: int) -> tuple[Tensor, Tensor]:
    """The stream without its last part, and that part, which nothing is trained on.

    Args:
        tokens: (N,) token ids.
        held_out: share of the stream that is held out, between 0 and 1.
        length: tokens in a window.

    Returns:
        Training tokens and held-out tokens.

    Raises:
        ValueError: one of them is shorter than a window.
    """
    cut = len(tokens) - int(held_out * len(tokens))
    parts = tokens[:cut], tokens[cut:]
    for part, what in zip(parts, ("to train on", "held out"), strict=True):
        if len(part) < length:
            raise ValueError(
                f"data has {len(tokens)} tokens, of which held_out={held_out:g} leaves {len(part)} "
                f"{what}: too few for one window of length={length}. Give it more text, a shorter "
                "length or another share."
            )
    return parts


class Windows(Dataset):
    """Consecutive windows of a stream of tokens; a rest that fills none is left out.

    The first label of a window is -100: nothing predicts it, and so a count of labels is right
    whether or not it is taken after the shift by one.
    """

    def __init__(self, tokens: Tensor, length: int):
        self.rows = tokens[: len(tokens) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.rows[index].long()
        labels = ids.clone()
        labels[0] = -100
        return {"input_ids": ids, "labels": labels}


class WithPasskeys(Dataset):
    """Windows of which a share asks for a passkey that is hidden in their own text.

    Which windows do, the numbers and the depths depend on the seed and the index alone, so that a
    resumed run and one on several processes see the same. Only the answer counts in the loss of
    such a window.
    """

    def __init__(self, windows: Windows, task: PasskeyTask, share: float, seed: int):
        self.windows, self.task, self.share, self.seed = windows, task, share, seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        choose = random.Random(f"{self.seed} {index}")
        if choose.random() >= self.share:
            return self.windows[index]
        return self.task.window(self.windows.rows[index].long(), choose)
