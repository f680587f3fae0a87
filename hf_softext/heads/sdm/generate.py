"""Answers that come with a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_softext.heads.sdm.verifier import SdmVerdict, SdmVerifier

_REJECTIONS = ("return", "resample", None)


@dataclass(frozen=True)
class VerifiedAnswer:
    """An answer of `generate_verified`.

    Attributes:
        text: what was generated, without special tokens; None where it was refused and
            `on_reject=None`.
        verdict: on this answer.
        tries: how many were generated before it was chosen, itself included.
    """

    text: str | None
    verdict: SdmVerdict
    tries: int


@torch.no_grad()
def generate_verified(
    model: Any,
    verifier: SdmVerifier,
    inputs: Sequence[str] | Mapping[str, Tensor],
    num_candidates: int = 1,
    on_reject: str | None = "return",
    **generate_kwargs: Any,
) -> list[VerifiedAnswer]:
    """Generate as the model does, and judge what comes out.

    With one candidate, the default, the answers are those of `model.generate`. With several, the
    admitted one of the highest score is taken, or, where none is admitted, the one of the highest
    score, with its refusal.

    Args:
        model: the language model of the verifier.
        verifier: of its completions.
        inputs: prompts, or what the tokenizer makes of them, padded on the left.
        num_candidates: most answers for each prompt; more than one needs sampling.
        on_reject: "return": a refused answer with its verdict; all candidates are generated at
            once. "resample": one is generated, and another only where it is refused, up to
            `num_candidates`. None: as "return", without the text of a refused answer.
        **generate_kwargs: of `model.generate`.

    Returns:
        One for each prompt.

    Raises:
        ValueError: another model than the verifier's, an option out of range, several candidates
            without `do_sample=True`, padding on the right, or `num_return_sequences`, which
            `num_candidates` stands for.
    """
    _check(model, verifier, num_candidates, on_reject, generate_kwargs)
    given = _encoded(verifier.tokenizer, inputs)
    given = {name: value.to(model.device) for name, value in given.items()}
    rounds = num_candidates if on_reject == "resample" else 1
    copies = num_candidates // rounds
    count = len(given["input_ids"])
    best: list[VerifiedAnswer | None] = [None] * count
    open_rows = list(range(count))
    for tried in range(1, rounds + 1):
        rows = [row for row in open_rows for _ in range(copies)]
        if not rows:
            break
        found = _answers(model, verifier, given, open_rows, copies, generate_kwargs)
        for row, (ids, verdict) in zip(rows, found, strict=True):
            text = verifier.tokenizer.decode(ids, skip_special_tokens=True)
            answer = VerifiedAnswer(text, verdict, tried * copies)
            before = best[row]
            if before is None or _rank(verdict) > _rank(before.verdict):
                best[row] = answer
            else:
                best[row] = VerifiedAnswer(before.text, before.verdict, tried * copies)
        open_rows = [row for row in open_rows if not _verdict(best[row]).admit]
    answers = [answer for answer in best if answer is not None]
    if on_reject is None:
        answers = [
            one if one.verdict.admit else VerifiedAnswer(None, one.verdict, one.tries)
            for one in answers
        ]
    return answers


def _answers(
    model: Any,
    verifier: SdmVerifier,
    given: dict[str, Tensor],
    rows: list[int],
    copies: int,
    options: dict[str, Any],
) -> list[tuple[list[int], SdmVerdict]]:
    """Tokens and verdict of `copies` answers for each of some prompts."""
    chosen = {name: value[rows] for name, value in given.items()}
    more = {} if copies == 1 else {"num_return_sequences": copies}
    output: Any = model.generate(**chosen, **options, **more)
    sequences = output if isinstance(output, Tensor) else output.sequences
    width = chosen["input_ids"].shape[1]
    ends = _ends(model, verifier.tokenizer, options)
    prompts = [
        ids[kept.bool()].tolist()
        for ids, kept in zip(chosen["input_ids"], chosen["attention_mask"], strict=True)
        for _ in range(copies)
    ]
    answers = [_until(tokens, ends) for tokens in sequences[:, width:].tolist()]
    # of an answer that ends at once there is only the end to judge
    judged = [
        tokens or sequences[row, width : width + 1].tolist() for row, tokens in enumerate(answers)
    ]
    return list(zip(answers, verifier.verify(prompts, judged), strict=True))


def _ends(model: Any, tokenizer: Any, options: dict[str, Any]) -> set[int]:
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    given = [options.get("eos_token_id"), getattr(config, "eos_token_id", None)]
    given += [tokenizer.eos_token_id, options.get("pad_token_id"), tokenizer.pad_token_id]
    flat = [one for found in given for one in (found if isinstance(found, list) else [found])]
    return {one for one in flat if one is not None}


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


def _rank(verdict: SdmVerdict) -> tuple[bool, float]:
    return verdict.admit, verdict.score


def _verdict(answer: VerifiedAnswer | None) -> SdmVerdict:
    assert answer is not None
    return answer.verdict


def _encoded(tokenizer: Any, inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, str):
        raise ValueError("inputs must be a list of prompts, also of a single one.")
    if not isinstance(inputs, Mapping):
        texts = list(inputs)
        if not texts:
            return {
                "input_ids": torch.zeros(0, 1).long(),
                "attention_mask": torch.zeros(0, 1).long(),
            }
        if len(texts) > 1 and tokenizer.pad_token is None:
            raise ValueError(
                "the tokenizer has no pad_token, so that several prompts make no batch: set "
                "tokenizer.pad_token = tokenizer.eos_token."
            )
        inputs = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1, padding_side="left")
    given = {
        name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")
    }
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    if not bool(given["attention_mask"][:, -1:].bool().all()):
        raise ValueError("inputs are padded on the right: use padding_side='left' to generate.")
    return given


def _check(
    model: Any, verifier: SdmVerifier, num_candidates: int, on_reject: Any, options: dict[str, Any]
) -> None:
    if model is not verifier.model:
        raise ValueError("model is not the verifier's: load the verifier with this model.")
    if (
        isinstance(num_candidates, bool)
        or not isinstance(num_candidates, int)
        or num_candidates < 1
    ):
        raise ValueError(f"num_candidates={num_candidates!r} must be a whole number, at least 1.")
    if on_reject not in _REJECTIONS:
        raise ValueError(f"on_reject={on_reject!r} must be 'return', 'resample' or None.")
    if "num_return_sequences" in options:
        raise ValueError("num_return_sequences: use num_candidates, of which the best is returned.")
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    samples = options.get("do_sample", getattr(config, "do_sample", False))
    if num_candidates > 1 and not samples:
        raise ValueError(
            f"num_candidates={num_candidates} without sampling would be the same answer again: "
            "give do_sample=True."
        )
