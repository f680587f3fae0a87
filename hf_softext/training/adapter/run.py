"""The whole training of an adapter: quantize the model or not, adapt, train, test, save."""

from hf_softext.training.adapter.arguments import (
    AdapterCausalLMArguments,
    AdapterClassifierArguments,
)
from hf_softext.training.adapter.hook import AdapterHook
from hf_softext.training.causal_lm.run import CausalLMResult, train_causal_lm
from hf_softext.training.classifier.run import ClassifierResult, train_classifier


def train_adapter(
    args: AdapterClassifierArguments | AdapterCausalLMArguments,
) -> ClassifierResult | CausalLMResult:
    """Train an adapter, by name, on a text classifier or a causal language model.

    As `train_classifier` or `train_causal_lm` in all else: what was interrupted continues. The
    folder that appears at the end holds `adapter_model.safetensors` with the adapter and whatever
    was trained with it (the head of a classifier), `adapter_config.json`, the tokenizer, a model
    card, `eval_results.json`, and `base/`: the config with which to load the model, and the model
    itself where this run quantized it.

    Args:
        args: `model`, `data` and `output_dir` say what; the rest has defaults.

    Returns:
        Where the adapter is and what was measured.

    Raises:
        ValueError: as the program for the task; an unknown adapter or keyword, no module that the
            adapter could go into, a model that cannot be quantized, or a partial run with another
            adapter.
        FileNotFoundError: no such data.
        FileExistsError: `output_dir` is there already.
    """
    hook = AdapterHook(args)
    if isinstance(args, AdapterCausalLMArguments):
        return train_causal_lm(args, hook)
    return train_classifier(args, hook=hook)
