"""The bundled texts; see `data/README.md` for sources and licences."""

import json
import lzma
import random
from functools import cache
from importlib import resources

# the intents of CLINC150's domain of this name
BANKING = (
    "account_blocked",
    "balance",
    "bill_balance",
    "bill_due",
    "freeze_account",
    "interest_rate",
    "min_payment",
    "order_checks",
    "pay_bill",
    "pin_change",
    "report_fraud",
    "routing",
    "spending_history",
    "transactions",
    "transfer",
)


def _read(name: str) -> str:
    return lzma.decompress(
        (resources.files("hf_softext.demo") / "data" / name).read_bytes()
    ).decode()


@cache
def shakespeare() -> tuple[str, str]:
    """Tiny Shakespeare: the first 90 % to train on, the last 10 % to test on."""
    text = _read("tinyshakespeare.txt.xz")
    split = int(0.9 * len(text))
    return text[:split], text[split:]


@cache
def clinc150() -> dict[str, list[tuple[str, str]]]:
    """CLINC150 in scope: (query, intent) pairs under "train", "val" and "test"."""
    splits = json.loads(_read("clinc150.json.xz"))
    return {name: [(query, intent) for query, intent in rows] for name, rows in splits.items()}


def passages(text: str, count: int, words: tuple[int, int], seed: int = 0) -> list[str]:
    """Random runs of words from a text.

    Args:
        text: where to cut from.
        count: how many.
        words: fewest and most words in one.
        seed: of the choice.
    """
    tokens = text.split()
    chosen = random.Random(seed)
    lengths = [chosen.randint(*words) for _ in range(count)]
    starts = [chosen.randrange(len(tokens) - length) for length in lengths]
    return [
        " ".join(tokens[start : start + length])
        for start, length in zip(starts, lengths, strict=True)
    ]


def blocks(text: str, words: int) -> list[str]:
    """Consecutive runs of so many words; a shorter rest is left out."""
    tokens = text.split()
    return [
        " ".join(tokens[start : start + words])
        for start in range(0, len(tokens) - words + 1, words)
    ]
