"""A tiny language model, and a verifier of what it says."""

from functools import cache

import torch

from hf_softext import SdmVerifier
from tests.heads.tiny import WORDS, build, tokenizer

SETTINGS = {
    "alpha": 0.9,
    "epochs": 30,
    "num_splits": 1,
    "exemplar_dim": 12,
    "learning_rate": 1e-2,
    "progress": False,
}


def answers(count: int, seed: int = 0) -> tuple[list[str], list[str], list[bool]]:
    """Prompts of any words, completions of six words if they are good and of six others if they
    are not, and whether they are good. No two prompts are alike."""
    draw, found = torch.Generator().manual_seed(seed), {}
    while len(found) < count:
        good = bool(len(found) % 2)
        prompt = torch.randint(90, (int(torch.randint(2, 6, (), generator=draw)),), generator=draw)
        start = 45 * good
        length = int(torch.randint(2, 7, (), generator=draw))
        answer = torch.randint(start, start + 6, (length,), generator=draw)
        texts = (" ".join(WORDS[word] for word in part) for part in (prompt, answer))
        found.setdefault(next(texts), (next(texts), good))
    return list(found), [one for one, _ in found.values()], [good for _, good in found.values()]


def words():
    """Without special tokens around a text, and an end of the sequence."""
    made = tokenizer(frame=False)
    made.eos_token = "[SEP]"
    return made


def language_model(dtype: torch.dtype = torch.float32):
    """A tiny llama with the same weights each time."""
    torch.manual_seed(3)
    return build("llama").to(dtype)


@cache
def verifier() -> SdmVerifier:
    """Fitted on 400 answers; tests leave it as it is."""
    return SdmVerifier.fit(language_model(), words(), *answers(400), **SETTINGS)
