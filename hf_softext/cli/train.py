"""`softext train`: the launchable trainers, from the command line of the package."""

from hf_softext.training.adapter.arguments import parse_adapter_arguments
from hf_softext.training.adapter.run import train_adapter
from hf_softext.training.arguments import parse_arguments
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.run import train_causal_lm
from hf_softext.training.classifier.arguments import ClassifierArguments
from hf_softext.training.classifier.distilled import DistilledArguments, train_distilled
from hf_softext.training.classifier.run import train_classifier


def adapter(words: list[str]) -> None:
    """Train an adapter and print what was measured.

    Args:
        words: `[CONFIG.yaml] [--name value ...]`.
    """
    args = parse_adapter_arguments(words, "softext train adapter")
    result = train_adapter(args)
    if args.process_index == 0:
        print(result.summary())


def causal_lm(words: list[str]) -> None:
    """Train a causal language model and print what was measured.

    Args:
        words: `[CONFIG.yaml] [--name value ...]`.
    """
    usage = "softext train causal-lm [CONFIG.yaml] [--name value ...]"
    args = parse_arguments(CausalLMArguments, words, usage)
    result = train_causal_lm(args)
    if args.process_index == 0:
        print(result.summary())


def classifier(words: list[str]) -> None:
    """Train a text classifier and print how it scored.

    Args:
        words: `[CONFIG.yaml] [--name value ...]`.
    """
    usage = "softext train classifier [CONFIG.yaml] [--name value ...]"
    args = parse_arguments(ClassifierArguments, words, usage)
    result = train_classifier(args)
    if args.process_index == 0:
        print(result.summary())


def distill(words: list[str]) -> None:
    """Train a text classifier with a teacher and print how it scored.

    Args:
        words: `[CONFIG.yaml] [--name value ...]`.
    """
    usage = "softext train distill [CONFIG.yaml] [--name value ...]"
    args = parse_arguments(DistilledArguments, words, usage)
    result = train_distilled(args)
    if args.process_index == 0:
        print(result.summary())
