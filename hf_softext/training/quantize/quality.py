"""What a quantized model is worth on text that it was not calibrated with."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.quantization.baq.sequences import calibration_sequences, continues_text
from hf_softext.training.causal_lm.extrapolation import loss_by_length


def hold_out(texts: Sequence[str], share: float, cut: bool) -> tuple[list[str], list[str]]:
    """Texts to calibrate with, and the last ones, which are only measured on.

    Args:
        texts: one or more.
        share: how much is held out, of all characters; 0 or more and below 1.
        cut: whether the text in which the border lies is cut in two, at white space; else the
            border is moved to the end of that text.

    Returns:
        The texts before the border and those after it.

    Raises:
        ValueError: one of the two would be empty.
    """
    texts = list(texts)
    if share == 0:
        return texts, []
    ends = list(accumulate(map(len, texts)))
    border = round((1 - share) * ends[-1])
    index = bisect_left(ends, border)
    before, after = texts[: index + 1], texts[index + 1 :]
    if cut:
        text, at = texts[index], border - ends[index] + len(texts[index])
        # at white space if there is any before it
        at = max(text.rfind(" ", 0, at), text.rfind("\n", 0, at)) + 1 or at
        before[-1], after = text[:at], [text[at:], *after]
    parts = [[text for text in part if text.strip()] for part in (before, after)]
    for part, what in zip(parts, ("to calibrate with", "held out"), strict=True):
        if not part:
            raise ValueError(
                f"data has {len(texts)} texts, of which held_out={share:g} leaves none {what}: "
                "give it more text or another share."
            )
    return parts[0], parts[1]


class HeldOut:
    """Measures models on the same held-out sequences.

    Of a model that continues text it is the perplexity; of another one the mean cosine between its
    last hidden states and those of the original, over all real tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, nsamples: int, seqlen: int):
        """Keep what to measure on.

        Args:
            texts: made into sequences as those to calibrate with are.
            tokenizer: of the models.
            nsamples: most sequences.
            seqlen: most tokens of one.
        """
        self.texts, self.tokenizer, self.nsamples, self.seqlen = texts, tokenizer, nsamples, seqlen
        self._sequences: list[Tensor] = []
        self._states: list[Tensor] = []

    def sequences(self, model: Any) -> list[Tensor]:
        """Token ids, (1, L) each; the same for all models of one architecture."""
        if not self._sequences:
            self._sequences = calibration_sequences(
                self.texts, self.tokenizer, model, self.nsamples, self.seqlen, seed=0
            )
        return self._sequences

    def original(self, model: Any) -> dict[str, float]:
        """Measure the original; others are compared with it."""
        if not continues_text(model, model.config):
            self._states = self._last_states(model)
        return self.measure(model)

    def measure(self, model: Any) -> dict[str, float]:
        """The loss in nats per token and the perplexity, or the cosine; and on how many tokens."""
        sequences = self.sequences(model)
        tokens = sum(ids.shape[1] for ids in sequences)
        if continues_text(model, model.config):
            # windows of one length
            length = sequences[0].shape[1]
            ids = torch.cat(sequences, dim=1).flatten()
            loss = loss_by_length(model, ids, [length])[length]
            return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "tokens": tokens}
        if not self._states:
            raise RuntimeError("the original has to be measured first")
        pairs = zip(self._last_states(model), self._states, strict=True)
        cosines = torch.cat([F.cosine_similarity(own, target, dim=-1) for own, target in pairs])
        return {"cosine": cosines.double().mean().item(), "tokens": tokens}

    @torch.no_grad()
    def _last_states(self, model: Any) -> list[Tensor]:
        """(L, D) float32 of each sequence."""
        model.eval()
        device = next(model.parameters()).device
        found = []
        for ids in self.sequences(model):
            given = {"input_ids": ids.to(device)}
            if getattr(model.config, "is_encoder_decoder", False):
                given["decoder_input_ids"] = given["input_ids"]
            outputs = model(**given, output_hidden_states=True)
            kinds = ("last_hidden_state", "hidden_states", "decoder_hidden_states")
            states = next((outputs[kind] for kind in kinds if outputs.get(kind) is not None), None)
            if states is None:
                raise ValueError(
                    f"{type(model).__name__} returns no hidden states to compare: set held_out=0."
                )
            last = states if isinstance(states, Tensor) else states[-1]
            found.append(last[0].float().cpu())
        return found
