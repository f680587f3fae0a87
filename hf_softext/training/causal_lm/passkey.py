"""Passkey retrieval: a number hidden in a text, asked for at its end."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DIGITS = 5
_CUE, _STOP = "\nPass key: ", "\n"


@dataclass(frozen=True)
class PasskeyTask:
    r"""Builds windows "... \nPass key: 48213\n ... \nPass key: 48213" from tokens of any text.

    The task is that of Mohtashami and Jaggi with a shorter wording, so that it fits into a short
    window of bytes. A model reads everything up to the second number, and is right if it would go
    on with exactly that number.

    Attributes:
        cue: tokens before a number.
        stop: tokens after the first number.
        digits: tokens of each digit, 0 to 9.

    Reference:
        A. Mohtashami, M. Jaggi, "Landmark Attention: Random-Access Infinite Context Length for
        Transformers", 2023, arXiv 2305.16300: the passkey retrieval task.
    """

    cue: tuple[int, ...]
    stop: tuple[int, ...]
    digits: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Any) -> "PasskeyTask | None":
        """The task in a tokenizer's tokens, or None where these do not tell the digits apart.

        Each digit is encoded on its own.
        """

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        digits = tuple(ids(str(digit)) for digit in range(10))
        return cls(ids(_CUE), ids(_STOP), digits) if len(set(digits)) == 10 else None

    @property
    def shortest(self) -> int:
        """The fewest tokens of a window: both numbers with their cues, and one token of text."""
        longest = DIGITS * max(len(digit) for digit in self.digits)
        return 2 * len(self.cue) + len(self.stop) + 2 * longest + 1

    def window(
        self, text: Tensor, choose: random.Random, depth: float | None = None
    ) -> dict[str, Tensor]:
        """One window of as many tokens as `text`, of which the last ones are left out to make room.

        Args:
            text: (L,) tokens, L at least `shortest`.
            choose: draws the number, and the depth where none is given.
            depth: share of the text that comes before the hidden number, 0 to 1.

        Returns:
            `input_ids` (L,), and `labels` (L,), which are -100 but for the number at the end.

        Raises:
            ValueError: `text` is shorter than `shortest`, or holds each of 1000 numbers that were
                tried.
        """
        if len(text) < self.shortest:
            raise ValueError(
                f"a window of {len(text)} tokens is too short for a passkey, which takes "
                f"{self.shortest}."
            )
        number = self._number(text, choose)
        room = len(text) - 2 * len(self.cue) - len(self.stop) - 2 * len(number)
        at = choose.randint(0, room) if depth is None else round(depth * room)
        needle = torch.tensor([*self.cue, *number, *self.stop])
        question = torch.tensor([*self.cue, *number])
        ids = torch.cat([text[:at], needle, text[at:room], question])
        labels = ids.clone()
        labels[: -len(number)] = -100
        return {"input_ids": ids, "labels": labels}

    def _number(self, text: Tensor, choose: random.Random) -> list[int]:
        for _ in range(1000):
            number = [token for _ in range(DIGITS) for token in self.digits[choose.randrange(10)]]
            windows = text.unfold(0, len(number), 1)
            # the text must not give the answer away
            if not (windows == torch.tensor(number)).all(dim=1).any():
                return number
        raise ValueError(f"a text of {len(text)} tokens holds every number that was tried.")
