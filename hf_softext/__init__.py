"""What softmax does inside a Hugging Face model, replaced behind the switches that its users
already have.

Importing this package is enough: the attention names are registered with transformers, and SNNK
with peft, at once where these are loaded, and otherwise at the moment they are. Nothing heavy is
imported before it is used.
"""

import importlib
import sys
from typing import Any

from hf_softext.version import __version__

# public name -> the module that has it
_LAZY = {
    "AdapterCausalLMArguments": "hf_softext.training.adapter.arguments",
    "AdapterClassifierArguments": "hf_softext.training.adapter.arguments",
    "AdoptionArguments": "hf_softext.training.adoption.trainer",
    "AdoptionTrainer": "hf_softext.training.adoption.trainer",
    "AdversarialTrainer": "hf_softext.training.adversarial",
    "AdversarialTrainingArguments": "hf_softext.training.adversarial",
    "AggregateTrainer": "hf_softext.training.aggregate",
    "BaqConfig": "hf_softext.quantization.baq.config",
    "BaqLinear": "hf_softext.quantization.baq.linear",
    "BaqQuantizer": "hf_softext.quantization.baq.quantizer",
    "CausalLMArguments": "hf_softext.training.causal_lm.arguments",
    "ClassifierArguments": "hf_softext.training.classifier.arguments",
    "ClosedFormHeadTrainer": "hf_softext.training.closed_form_trainer",
    "DistillationTrainer": "hf_softext.training.distillation",
    "DistilledArguments": "hf_softext.training.classifier.distilled",
    "MahalanobisDetector": "hf_softext.heads.mahalanobis",
    "NaiveBayesProbe": "hf_softext.heads.naive_bayes",
    "PerpGradCallback": "hf_softext.training.perp_grad",
    "SdmConfig": "hf_softext.heads.sdm.config",
    "SdmForSequenceClassification": "hf_softext.heads.sdm.model",
    "SdmHead": "hf_softext.heads.sdm.head",
    "SdmVerifier": "hf_softext.heads.sdm.verifier",
    "SnnkConfig": "hf_softext.adapters.snnk.config",
    "SnnkHead": "hf_softext.adapters.snnk.head",
    "SnnkLinear": "hf_softext.adapters.snnk.standalone",
    "SnnkModel": "hf_softext.adapters.snnk.model",
    "SoftAttention": "hf_softext.attention.soft_module",
    "SoftextTrainer": "hf_softext.training.softext_trainer",
    "SoftextTrainerMixin": "hf_softext.training.softext_trainer",
    "SoftextTrainingArguments": "hf_softext.training.softext_arguments",
    "SoftmaxCollapseCallback": "hf_softext.training.collapse",
    "StableMaxLogitsProcessor": "hf_softext.generation.stablemax",
    "adapter_size": "hf_softext.adapters.snnk.size",
    "adopt": "hf_softext.training.adoption.run",
    "apply_attention": "hf_softext.attention.apply",
    "bundle_sequential": "hf_softext.adapters.snnk.bundling",
    "compare_probes": "hf_softext.heads.naive_bayes_compare",
    "convert_to_soft": "hf_softext.attention.soft_convert",
    "estimate": "hf_softext.quantization.baq.size",
    "extract_features": "hf_softext.heads.features",
    "fit_closed_form": "hf_softext.adapters.snnk.closed_form",
    "fit_probe": "hf_softext.heads.naive_bayes_compare",
    "generate_verified": "hf_softext.heads.sdm.generate",
    "get_loss": "hf_softext.losses",
    "list_losses": "hf_softext.losses",
    "make_bags": "hf_softext.data.bags",
    "make_compute_loss_func": "hf_softext.training.compute_loss_func",
    "perp_grad": "hf_softext.optim.perp_grad",
    "register": "hf_softext.registration",
    "size_report": "hf_softext.quantization.baq.size",
    "stablemax_decoding": "hf_softext.generation.stablemax",
    "train_adapter": "hf_softext.training.adapter.run",
    "train_causal_lm": "hf_softext.training.causal_lm.run",
    "train_classifier": "hf_softext.training.classifier.run",
    "train_distilled": "hf_softext.training.classifier.distilled",
    "verify_attention": "hf_softext.attention.verify",
}
# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "AdapterCausalLMArguments",
    "AdapterClassifierArguments",
    "AdoptionArguments",
    "AdoptionTrainer",
    "AdversarialTrainer",
    "AdversarialTrainingArguments",
    "AggregateTrainer",
    "BaqConfig",
    "BaqLinear",
    "BaqQuantizer",
    "CausalLMArguments",
    "ClassifierArguments",
    "ClosedFormHeadTrainer",
    "DistillationTrainer",
    "DistilledArguments",
    "MahalanobisDetector",
    "NaiveBayesProbe",
    "PerpGradCallback",
    "SdmConfig",
    "SdmForSequenceClassification",
    "SdmHead",
    "SdmVerifier",
    "SnnkConfig",
    "SnnkHead",
    "SnnkLinear",
    "SnnkModel",
    "SoftAttention",
    "SoftextTrainer",
    "SoftextTrainerMixin",
    "SoftextTrainingArguments",
    "SoftmaxCollapseCallback",
    "StableMaxLogitsProcessor",
    "__version__",
    "adapter_size",
    "adopt",
    "apply_attention",
    "bundle_sequential",
    "compare_probes",
    "convert_to_soft",
    "estimate",
    "extract_features",
    "fit_closed_form",
    "fit_probe",
    "generate_verified",
    "get_loss",
    "list_losses",
    "make_bags",
    "make_compute_loss_func",
    "perp_grad",
    "register",
    "size_report",
    "stablemax_decoding",
    "train_adapter",
    "train_causal_lm",
    "train_classifier",
    "train_distilled",
    "verify_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _register_when_loaded(host: str, function: str) -> None:
    def register(_: Any) -> None:
        getattr(importlib.import_module("hf_softext.registration"), function)()

    if host in sys.modules:
        register(None)
    else:
        importlib.import_module("wrapt").register_post_import_hook(register, host)


_register_when_loaded("transformers.modeling_utils", "register")
_register_when_loaded("peft", "register_adapters")
_register_when_loaded("transformers.pipelines", "register_pipelines")
