"""Prompts and completions as rows of token ids."""

from collections.abc import Sequence
from typing import Any

Text = str | Sequence[int]


def completion_rows(
    tokenizer: Any,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    longest: int | None = None,
) -> list[dict[str, Any]]:
    """A row for each prompt with its completion: "input_ids" and "text".

    Prompt and completion are tokenised apart, as `generate` leaves them: the prompt with the
    tokenizer's special tokens, the completion without. An empty completion is the end of the
    sequence alone, which is what the model said.

    Args:
        tokenizer: of the model.
        prompts: texts, or token ids.
        completions: one for each; texts, or token ids.
        longest: most tokens of both; None: no limit.

    Raises:
        TypeError: a single text in place of a list.
        ValueError: lists of different lengths, an empty completion where the tokenizer has no
            eos_token, or a row that is too long.
    """
    for name, given in (("prompts", prompts), ("completions", completions)):
        if isinstance(given, str):
            raise TypeError(f"{name} is a text: give a list of texts, also for a single one.")
    if len(prompts) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts and {len(completions)} completions: give one for each."
        )
    rows = []
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = _ids(tokenizer, completion, special=False)
        if not end:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    f"completion {place} is empty, and the tokenizer has no eos_token to stand for "
                    "it: leave it out."
                )
            end = [tokenizer.eos_token_id]
        ids = _ids(tokenizer, prompt, special=True) + end
        if longest is not None and len(ids) > longest:
            raise ValueError(
                f"prompt {place} and its completion have {len(ids)} tokens, and {longest} are the "
                "most: leave it out; a verdict on a part would not be one on the answer."
            )
        text = _text(tokenizer, prompt) + _text(tokenizer, completion)
        rows.append({"input_ids": ids, "text": text})
    return rows


def _ids(tokenizer: Any, text: Text, special: bool) -> list[int]:
    if not isinstance(text, str):
        return [int(token) for token in text]
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _text(tokenizer: Any, text: Text) -> str:
    if isinstance(text, str):
        return text
    return tokenizer.decode(list(text), skip_special_tokens=True)
