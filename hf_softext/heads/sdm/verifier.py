"""Whether a completion of a language model may be relied on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.model import SdmForSequenceClassification

BAD, GOOD = 0, 1
# of a completion that the head takes for a wrong one
PREDICTED_BAD = "predicted_bad"
Text = str | Sequence[int]


@dataclass(frozen=True)
class SdmVerdict:
    """What is said of one completion.

    Attributes:
        admit: it is predicted good, in the high-reliability region: it may be relied on.
        admit_lower: it still is with the lower bound of the distance; the paper recommends this.
        reason: "admitted", "predicted_bad", or why the head refuses, see `SdmOutput`.
        score: the head's output for "good", from 0 to 1.
        score_lower: the same with the lower bound.
        similarity: q, the run of nearest training completions that speak for it.
        distance: d, 1 is as near as any calibration row, 0 farther than all.
        exemplars: the nearest training completions: "id", "text", "label", "predicted", "distance".
    """

    admit: bool
    admit_lower: bool
    reason: str
    score: float
    score_lower: float
    similarity: float
    distance: float
    exemplars: list[dict[str, Any]]


class SdmVerifier:
    """Tells good completions of a causal language model from bad ones, or refuses to.

        verifier = SdmVerifier.fit(model, tokenizer, prompts, completions, is_good)
        verifier.verify(["23+45="], ["68"])[0].admit

    An `SdmHead` with the classes "bad" and "good" on features of the prompt and its completion: the
    last hidden state at the last token, and the mean over all tokens. It needs some hundreds of
    completions of each kind, of the same model, to say anything.

    Args:
        model: the causal language model that the head was fitted on.
        tokenizer: of the model.
        head: of these two classes.

    Raises:
        ValueError: a head of other classes, or of another model.

    Notes:
        A text and its completion are tokenised apart. Where `generate` chose other tokens for the
        same text, token ids in place of texts are surer.

    Reference:
        A. Schmaltz, "Similarity-Distance-Magnitude Language Models", 2025, arXiv 2510.26183: the
        features; here the language model itself is not trained, and no tag is appended.
    """

    def __init__(self, model: Any, tokenizer: Any, head: SdmHead):
        if dict(head.config.id2label) != {BAD: "bad", GOOD: "good"}:
            raise ValueError(
                f"a head for {dict(head.config.id2label)} is no verifier: make one with "
                "SdmVerifier.fit."
            )
        self.model, self.tokenizer, self.head = model, tokenizer, head
        self._classifier = SdmForSequenceClassification.from_backbone(model, head)

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        is_good: Sequence[bool],
        *,
        alpha: float = 0.95,
        max_length: int | None = None,
        batch_size: int = 32,
        work_dir: str | Path | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> "SdmVerifier":
        """Fit on completions of which it is known whether they are right.

        Args:
            model: a causal language model; it is not changed.
            tokenizer: of the model.
            prompts: texts or token ids.
            completions: one for each; texts or token ids.
            is_good: whether each is right.
            alpha: the accuracy to hold among admitted completions, above 0.5 and up to 1.
            max_length: most tokens of a prompt and its completion; longer ones are an error. None:
                as many as the model takes.
            batch_size: completions at once.
            work_dir: see `SdmHead.fit`.
            progress: whether to show bars.
            **settings: of `SdmConfig`.

        Raises:
            ValueError: lists of different lengths, all good or all bad, an empty completion or one
                that is too long; and what `SdmHead.fit` raises.
        """
        good = [bool(one) for one in is_good]
        if len(set(good)) < 2:
            raise ValueError(
                f"is_good is {good[0] if good else 'empty'} throughout: a verifier needs right and "
                "wrong completions to learn from."
            )
        if len(good) != len(prompts):
            raise ValueError(f"is_good has {len(good)} values for {len(prompts)} prompts.")
        _check_decoder(model)
        rows = _rows(tokenizer, prompts, completions, max_length or _positions(model))
        head = SdmHead.fit(
            model,
            None,
            [{**row, "label": int(one)} for row, one in zip(rows, good, strict=True)],
            pooling="last_mean",
            feature_batch_size=batch_size,
            config=SdmConfig(alpha=alpha, id2label={BAD: "bad", GOOD: "good"}),
            work_dir=work_dir,
            progress=progress,
            **settings,
        )
        return cls(model, tokenizer, head)

    def verify(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        batch_size: int = 32,
        exemplars: int = 3,
    ) -> list[SdmVerdict]:
        """Judge completions.

        Args:
            prompts: as in `fit`; may be empty.
            completions: one for each.
            batch_size: completions at once.
            exemplars: how many nearest training completions come with each verdict.

        Raises:
            ValueError: lists of different lengths, or an empty completion.
        """
        rows = _rows(self.tokenizer, prompts, completions, _positions(self.model))
        found: list[SdmVerdict] = []
        for start in range(0, len(rows), batch_size):
            found += self._judge([row["input_ids"] for row in rows[start:][:batch_size]], exemplars)
        return found

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the head's files; the model is not written, and not changed by any of this."""
        self.head.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, model: Any, tokenizer: Any, **download: Any
    ) -> "SdmVerifier":
        """Load what `save_pretrained` wrote.

        Args:
            name_or_path: a folder, or a repository of the hub.
            model: the language model that it was fitted on.
            tokenizer: of the model.
            **download: see `SdmHead.from_pretrained`.

        Raises:
            ValueError: another model, or files that do not fit together.
        """
        return cls(model, tokenizer, SdmHead.from_pretrained(name_or_path, model=model, **download))

    def _judge(self, ids: list[list[int]], exemplars: int) -> list[SdmVerdict]:
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        output: Any = self._classifier(input_ids=padded, attention_mask=mask)
        near = self.head.neighbours(output, exemplars)
        found = []
        for row in range(len(ids)):
            good = int(output.prediction[row]) == GOOD
            refused = output.reason[row] if int(output.prediction[row]) < 0 else PREDICTED_BAD
            found.append(
                SdmVerdict(
                    admit=good and bool(output.admit[row]),
                    admit_lower=good and bool(output.admit_lower[row]),
                    reason=output.reason[row] if good else refused,
                    score=float(output.probs[row, GOOD]),
                    score_lower=float(output.probs_lower[row, GOOD]),
                    similarity=float(output.similarity[row]),
                    distance=float(output.distance[row]),
                    exemplars=near[row],
                )
            )
        return found


def _rows(
    tokenizer: Any, prompts: Sequence[Text], completions: Sequence[Text], longest: int | None
) -> list[dict[str, Any]]:
    if isinstance(prompts, str) or isinstance(completions, str):
        raise ValueError("prompts and completions must be lists, also of a single one.")
    if len(prompts) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts and {len(completions)} completions: give one each."
        )
    rows = []
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = _ids(tokenizer, completion, special=False)
        if not end:
            raise ValueError(f"completion {place} is empty: there is nothing to judge.")
        ids = _ids(tokenizer, prompt, special=True) + end
        if longest is not None and len(ids) > longest:
            raise ValueError(
                f"prompt {place} and its completion have {len(ids)} tokens, and {longest} are the "
                "most: shorten the prompt; a verdict on a part would not be on the answer."
            )
        rows.append(
            {"input_ids": ids, "text": _text(tokenizer, prompt) + _text(tokenizer, completion)}
        )
    return rows


def _ids(tokenizer: Any, text: Text, special: bool) -> list[int]:
    if not isinstance(text, str):
        return [int(token) for token in text]
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _text(tokenizer: Any, text: Text) -> str:
    return text if isinstance(text, str) else tokenizer.decode(text, skip_special_tokens=True)


def _positions(model: Any) -> int | None:
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def _check_decoder(model: Any) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} reads prompts apart from completions: verifiers are for "
            "causal language models."
        )
