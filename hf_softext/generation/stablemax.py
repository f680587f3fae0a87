"""StableMax instead of softmax in `generate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from hf_softext.functional import stablemax_logits

# float32 rounding of a logsumexp that is 0
_NORMALISED = 1e-5


class StableMaxLogitsProcessor(LogitsProcessor):
    r"""Makes `generate` sample from StableMax of the logits.

        model.generate(**inputs, do_sample=True, logits_processor=[StableMaxLogitsProcessor()])

    Maps scores with $g(z) = \mathrm{sign}(z)\log(1+|z|)$: the softmax that follows is StableMax. A
    model that was trained with the StableMax loss has logits of the order of its vocabulary's
    size; softmax of those would always take the largest.

    Greedy decoding is unchanged, as $g$ is increasing. Beam search is not possible this way: it
    takes log-softmax first, and StableMax, which is not invariant to adding a constant, needs the
    logits themselves. Use `stablemax_decoding` there.

    Notes:
        Order, as `generate` has it: what it builds from its own arguments before the processors
        that are passed (repetition penalty, sequence bias, bad words, minimum length, ...) sees
        the logits; temperature, top-k, top-p, min-p and the like come afterwards and see $g$.
        So temperature T samples from $s(z)^{1/T}$ normalised, and top-p counts StableMax mass.
        `renormalize_logits=True` gives log StableMax. `guidance_scale` takes log-softmax too: use
        `stablemax_decoding`.

        -inf stays -inf, so a token that was ruled out stays so. A processor that rules out with a
        finite number does not: -1e9 becomes -20.7, which is a probability.

    Reference:
        L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
        Stability", 2025, arXiv 2501.04697: the map; its use in decoding is ours.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Map the scores.

        Args:
            input_ids: (B, N), unused.
            scores: (B, V), floating point: logits.

        Returns:
            (B, V), dtype of `scores`; half precision is computed in float32.

        Raises:
            ValueError: two or more rows that are all log-probabilities, which is how beam search
                shows. Where another processor has changed them before, it cannot be seen.
        """
        if len(scores) > 1 and bool((scores.logsumexp(dim=-1).abs() < _NORMALISED).all()):
            raise ValueError(
                "StableMaxLogitsProcessor got log-probabilities instead of logits, as in beam "
                "search: call generate without it inside `with stablemax_decoding(model):`."
            )
        return stablemax_logits(_wide(scores)).to(scores.dtype)


@contextmanager
def stablemax_decoding(model: Any) -> Iterator[None]:
    r"""Inside, the model's logits are $g$ of what they were, whatever asks for them.

        with stablemax_decoding(model):
            model.generate(**inputs, num_beams=4)

    For what takes log-softmax of the logits by itself: beam search then adds up log StableMax,
    and classifier-free guidance mixes it. All processors see $g$, the repetition penalty
    included, which is the difference to `StableMaxLogitsProcessor`; do not use both.

    Args:
        model: a model of transformers that can generate, also inside peft or torch.compile.

    Raises:
        TypeError: in the call, where the model's output has no tensor of logits.

    Notes:
        A forward hook, taken off at the end, also after an exception. Every call of the model
        inside is affected, from any thread: do not compute a training loss there. Logits in half
        precision become float32, as `generate` would make them next.
    """
    # a wrapper's `generate` calls the model that it wraps: peft's, torch.compile's
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    model = getattr(model, "_orig_mod", model)
    handle = model.register_forward_hook(_map_output)
    try:
        yield
    finally:
        handle.remove()


def _map_output(module: Any, inputs: Any, output: Any) -> Any:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"stablemax_decoding: the output of {type(module).__name__} is a "
            f"{type(output).__name__} without logits."
        )
    output.logits = stablemax_logits(_wide(logits))
    return output


def _wide(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
