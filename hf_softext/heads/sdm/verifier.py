"""Whether a completion of a language model may be relied on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_softext.heads.backbone import backbone, evaluating
from hf_softext.heads.pooling import pooled_features
from hf_softext.heads.sdm.canonical import of_class
from hf_softext.heads.sdm.completions import Text, completion_rows
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.output import SdmOutput
from hf_softext.heads.sdm.saving import check_attached, check_precision
from hf_softext.heads.sdm.verifier_card import write_verifier_card

BAD, GOOD = 0, 1
CLASSES = {BAD: "bad", GOOD: "good"}
POOLING = "last_mean"
# of a completion that the head takes for a wrong one
PREDICTED_BAD = "predicted_bad"


@dataclass(frozen=True)
class SdmVerdict:
    """What is said of one completion.

    Attributes:
        label: "good" or "bad"; None where the model's states are not finite.
        admit: it is predicted good, in the high-reliability region: it may be relied on.
        admit_lower: it still is with the lower bound of the distance; the paper recommends this.
        reason: "admitted", "predicted_bad", or why the head refuses, see `SdmOutput`.
        score: the head's output for the label, from 0 to 1; NaN where there is none.
        score_lower: its lower bound.
        similarity: q, the run of nearest training completions that speak for it.
        distance: d, 1 is as near as any calibration row, 0 farther than all.
        exemplars: the nearest training completions: "id", "text", "label", "predicted" and
            "squared_distance".
    """

    label: str | None
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
        head: of these two classes; it is moved to where the model is.

    Raises:
        ValueError: a head of other classes or features, or of another model.

    Notes:
        Prompt and completion are tokenised apart. Where `generate` chose other tokens for the same
        text, token ids in place of texts are surer.

    Reference:
        A. Schmaltz, "Similarity-Distance-Magnitude Language Models", 2025, arXiv 2510.26183: the
        features; here the language model itself is not trained, and no tag is appended.
    """

    def __init__(self, model: Any, tokenizer: Any, head: SdmHead):
        config = head.config
        if dict(config.id2label) != CLASSES or config.pooling != POOLING:
            raise ValueError(
                f"a head for the classes {', '.join(config.id2label.values()) or 'without names'} "
                f"with pooling={config.pooling!r} is no verifier: make one with SdmVerifier.fit."
            )
        check_decoder(model.config)
        check_attached(head, model)
        self.model, self.tokenizer = model, tokenizer
        weight = next(backbone(model).parameters())
        self.head, self._attached_dtype = head.to(weight.device).eval(), weight.dtype

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
            TypeError: as `completion_rows` and `SdmHead.fit`.
            ValueError: as these; lists of different lengths, or all good or all bad.
        """
        check_decoder(model.config)
        rows = completion_rows(
            tokenizer, prompts, completions, max_length or positions(model.config)
        )
        good = check_flags(is_good, len(prompts))
        head = SdmHead.fit(
            model,
            None,
            [{**row, "label": int(one)} for row, one in zip(rows, good, strict=True)],
            pooling=POOLING,
            feature_batch_size=batch_size,
            config=SdmConfig(alpha=alpha, id2label=CLASSES),
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
            TypeError: as `completion_rows`.
            ValueError: as `completion_rows`, a batch_size below 1, or a model that was cast to
                another precision.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
        rows = completion_rows(self.tokenizer, prompts, completions, positions(self.model.config))
        found: list[SdmVerdict] = []
        for start in range(0, len(rows), batch_size):
            output = self._output([row["input_ids"] for row in rows[start : start + batch_size]])
            found += _verdicts(output, self.head.neighbours(output, exemplars))
        return found

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the head's files, and a README where there is none; the model is not written."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "README.md").exists():
            write_verifier_card(folder / "README.md", self.head)
        self.head.save_pretrained(folder)

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
            ValueError: another model, a head of other classes, or files that do not fit together.
            OSError: files that are not there.
        """
        return cls(model, tokenizer, SdmHead.from_pretrained(name_or_path, **download))

    @torch.no_grad()
    def _output(self, ids: list[list[int]]) -> SdmOutput:
        width = max(map(len, ids))
        batch = {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in ids]
            ),
        }
        body = backbone(self.model)
        check_precision(body, self._attached_dtype)
        # a model in the midst of training is to be in training mode afterwards
        with evaluating(body):
            features = pooled_features(self.model, batch, POOLING, self.head.config.layers)
        return self.head(features)


def check_flags(is_good: Sequence[bool], count: int) -> list[bool]:
    """Flags of completions as bools.

    Raises:
        ValueError: another count, flags that are neither true nor false, or all alike.
    """
    flags = list(is_good)
    if len(flags) != count:
        raise ValueError(f"is_good has {len(flags)} values for {count} prompts.")
    wrong = [one for one in flags if not isinstance(one, str) and one not in (0, 1)]
    wrong += [one for one in flags if isinstance(one, str)]
    if wrong:
        raise ValueError(f"is_good holds {wrong[0]!r}: give True or False for each completion.")
    good = [bool(one) for one in flags]
    if len(set(good)) < 2:
        raise ValueError(
            f"is_good is {good[0] if good else 'empty'} throughout: a verifier needs right and "
            "wrong completions to learn from."
        )
    return good


def check_decoder(config: Any) -> None:
    """Raise ValueError for the config of a model that reads prompts apart from completions."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model is an encoder-decoder ({config.model_type}): verifiers are for causal language "
            "models, whose hidden states cover prompt and completion."
        )


def positions(config: Any) -> int | None:
    """Most tokens that a model takes, as far as its config says."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _verdicts(output: SdmOutput, exemplars: list[list[dict[str, Any]]]) -> list[SdmVerdict]:
    known: Any = output
    place = known.prediction.clamp(min=0)
    columns: Any = (
        output.prediction,
        output.admit,
        output.admit_lower,
        of_class(known.probs, place),
        of_class(known.probs_lower, place),
        output.similarity,
        output.distance,
    )
    rows = zip(*(one.tolist() for one in columns), strict=True)
    found = []
    for row, reason, near in zip(rows, output.reason or [], exemplars, strict=True):
        label, admit, admit_lower, score, score_lower, similarity, distance = row
        found.append(
            SdmVerdict(
                label=CLASSES.get(label),
                admit=label == GOOD and admit,
                admit_lower=label == GOOD and admit_lower,
                reason=PREDICTED_BAD if label == BAD else reason,
                score=score if label in CLASSES else float("nan"),
                score_lower=score_lower if label in CLASSES else float("nan"),
                similarity=similarity,
                distance=distance,
                exemplars=near,
            )
        )
    return found
