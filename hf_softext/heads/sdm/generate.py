"""Answers that come with a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_softext.heads.sdm.verifier import SdmVerdict, SdmVerifier

_REJECTIONS = ("return", "resample", None)
# what a tokenizer gives that `generate` needs, and what it can do without
_NEEDED, _SPARED = ("input_ids", "attention_mask"), ("token_type_ids",)


@dataclass(frozen=True)
class VerifiedAnswer:
    """An answer of `generate_verified`.

    Attributes:
        text: what was generated, without special tokens; None where it was refused and
            `on_reject=None`.
        verdict: on this answer.
        tries: how many were generated for this prompt, this one included.
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

    By default the answers are those of `model.generate`, which nothing here changes. Of several
    candidates the admitted one that is most surely good is taken; where none is admitted, the
    most surely good one, with its refusal.

    Args:
        model: the language model of the verifier.
        verifier: of its completions.
        inputs: prompts, or what the tokenizer makes of them, padded on the left.
        num_candidates: answers for each prompt, of which one is returned; more than one needs
            sampling.
        on_reject: "return": a refused answer with its verdict. "resample": one answer is generated,
            and where it is refused up to `num_candidates` more, one at a time, until one is
            admitted; needs sampling. None: as "return", but without the text of a refused answer.
        **generate_kwargs: of `model.generate`, such as `max_new_tokens` and `do_sample`.

    Returns:
        One for each prompt, in their order.

    Raises:
        TypeError: a single text in place of a list, or token ids that are no tensor.
        ValueError: another model than the verifier's, an option out of range, several tries without
            `do_sample=True`, several prompts without a pad_token, padding on the right, inputs that
            are no text, a prompt without tokens, or `num_return_sequences`, for which
            `num_candidates` stands.

    Notes:
        Every answer costs another pass of the model over prompt and answer. A verdict is on one
        answer: the best of many tries is more often wrong than its verdict says, as it was chosen
        by it.
    """
    _check(model, verifier, num_candidates, on_reject, generate_kwargs)
    given = _encoded(verifier.tokenizer, inputs)
    given = {name: value.to(model.device) for name, value in given.items()}
    resample = on_reject == "resample"
    rounds, copies = (1 + num_candidates, 1) if resample else (1, num_candidates)
    best: dict[int, VerifiedAnswer] = {}
    still_open = list(range(len(given["input_ids"])))
    for number in range(rounds):
        if not still_open:
            break
        found = _answers(model, verifier, given, still_open, copies, generate_kwargs)
        for row, (text, verdict) in zip(
            (row for row in still_open for _ in range(copies)), found, strict=True
        ):
            tries = (number + 1) * copies
            before = best.get(row)
            if before is None or _rank(verdict) > _rank(before.verdict):
                best[row] = VerifiedAnswer(text, verdict, tries)
            else:
                best[row] = replace(before, tries=tries)
        still_open = [row for row in still_open if not best[row].verdict.admit]
    answers = [best[row] for row in sorted(best)]
    if on_reject is None:
        answers = [one if one.verdict.admit else replace(one, text=None) for one in answers]
    return answers


def _answers(
    model: Any,
    verifier: SdmVerifier,
    given: dict[str, Tensor],
    rows: list[int],
    copies: int,
    options: dict[str, Any],
) -> list[tuple[str, SdmVerdict]]:
    """Text and verdict of `copies` answers for each of some prompts."""
    chosen = {name: value[rows] for name, value in given.items()}
    more = {} if copies == 1 else {"num_return_sequences": copies}
    output: Any = model.generate(**chosen, **options, **more)
    sequences = output if isinstance(output, Tensor) else output.sequences
    new = sequences[:, chosen["input_ids"].shape[1] :].tolist()
    ends = _ends(model, verifier.tokenizer, options)
    answers = [_until(tokens, ends) for tokens in new]
    if verifier.tokenizer.eos_token_id is None:
        # of an answer that ends at once there is only the end to judge
        judged = [answer or tokens[:1] for answer, tokens in zip(answers, new, strict=True)]
    else:
        judged = answers
    prompts = [
        ids[kept].tolist()
        for ids, kept in zip(chosen["input_ids"], chosen["attention_mask"].bool(), strict=True)
        for _ in range(copies)
    ]
    texts = [verifier.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return list(zip(texts, verifier.verify(prompts, judged), strict=True))


def _ends(model: Any, tokenizer: Any, options: dict[str, Any]) -> set[int]:
    """Tokens at which an answer is over: ends of a sequence, and what fills up a batch."""
    config = options.get("generation_config") or model.generation_config
    given = [options.get("eos_token_id"), config.eos_token_id, tokenizer.eos_token_id]
    given += [options.get("pad_token_id"), config.pad_token_id, tokenizer.pad_token_id]
    flat = [one for found in given for one in (found if isinstance(found, list) else [found])]
    return {int(one) for one in flat if one is not None}


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


def _rank(verdict: SdmVerdict) -> tuple[bool, float]:
    # the surer it is bad, the lower; no score is the lowest
    signs = {"good": verdict.score, "bad": -verdict.score}
    return verdict.admit, signs.get(str(verdict.label), -2.0)


def _encoded(tokenizer: Any, inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, str):
        raise TypeError("inputs is a text: give a list of prompts, also for a single one.")
    if not isinstance(inputs, Mapping):
        texts = list(inputs)
        if not texts:
            return {name: torch.zeros(0, 1, dtype=torch.int64) for name in _NEEDED}
        if len(texts) > 1 and tokenizer.pad_token is None:
            raise ValueError(
                "the tokenizer has no pad_token, so that several prompts make no batch: set "
                "tokenizer.pad_token = tokenizer.eos_token."
            )
        inputs = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1, padding_side="left")
    unknown = sorted(set(inputs) - {*_NEEDED, *_SPARED})
    if unknown or "input_ids" not in inputs:
        raise ValueError(
            f"inputs has {', '.join(sorted(inputs))}: a verdict is on texts alone, which are "
            "input_ids and attention_mask."
        )
    given = {name: inputs[name] for name in _NEEDED if name in inputs}
    for name, one in given.items():
        if not isinstance(one, Tensor) or one.dim() != 2:
            raise TypeError(f"{name} must be a tensor, (B, L): tokenise with return_tensors='pt'.")
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    real = given["attention_mask"].bool()
    empty = (~real.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"prompt {empty[0]} ({len(empty)} in all) has no tokens: leave it out.")
    if not bool(real[:, -1].all()):
        raise ValueError("inputs are padded on the right: use padding_side='left' to generate.")
    return given


def _check(
    model: Any, verifier: SdmVerifier, num_candidates: int, on_reject: Any, options: dict[str, Any]
) -> None:
    if model is not verifier.model:
        raise ValueError("model is not the verifier's: load the verifier with this model.")
    whole = isinstance(num_candidates, int) and not isinstance(num_candidates, bool)
    if not whole or num_candidates < 1:
        raise ValueError(f"num_candidates={num_candidates!r} must be a whole number, at least 1.")
    if on_reject not in _REJECTIONS:
        raise ValueError(f"on_reject={on_reject!r} must be 'return', 'resample' or None.")
    config = options.get("generation_config") or model.generation_config
    if "num_return_sequences" in options or (config.num_return_sequences or 1) > 1:
        raise ValueError("num_return_sequences: use num_candidates, of which the best is returned.")
    samples = options.get("do_sample", config.do_sample)
    if (num_candidates > 1 or on_reject == "resample") and not samples:
        raise ValueError(
            f"num_candidates={num_candidates}, on_reject={on_reject!r}: without sampling every try "
            "would be the same answer again: give do_sample=True."
        )
