"""An adapter on the model of a training, and what is saved of it."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig

from hf_softext.quantization.baq.size import SizeReport, size_report
from hf_softext.training.adapter.base import BASE, quantized_base, write_base
from hf_softext.training.adapter.card import write_adapter_card
from hf_softext.training.adapter.config import adapter_config
from hf_softext.training.causal_lm.model import describe_source
from hf_softext.training.checkpoints import needed
from hf_softext.training.model_hook import ModelHook
from hf_softext.training.pretrained import pretrained_class

CONFIG = "adapter_config.json"
_TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}
# peft saves these of a classifier by itself
_HEADS = {"classifier", "score"}


class AdapterHook(ModelHook):
    """Puts an adapter on the model, which is quantized first where that is asked for.

    What is trained: the adapter, the head of a classifier, and every module that the checkpoint has
    no weights for, as the pooler of a masked language model: it would be drawn anew at every load.

    Args:
        args: `AdapterClassifierArguments` or `AdapterCausalLMArguments`.
    """

    def __init__(self, args: Any):
        self.args = args
        self._source = ""
        self._missing: set[str] = set()
        self._about: dict[str, Any] = {}
        self._model_config: Any = None

    def source(self, args: Any, tokenizer: Any, texts: Any, claim: Callable[[], None]) -> str:
        """The model, or the same quantized."""
        self.args, self._source = args, needed(args, "model")
        options = args.quantization_options()
        if options is not None:
            self._check_fit()
            self._source = quantized_base(args, options, tokenizer, texts, claim)
        return self._source

    def load(self, kind: Any, source: str, **given: Any) -> Any:
        """As always, but take down what the checkpoint has no weights for."""
        model, found = kind.from_pretrained(source, output_loading_info=True, **given)
        other_size = {name for name, *_ in found["mismatched_keys"]}
        self._missing = {*found["missing_keys"], *other_size}
        return model

    def wrap(self, model: Any, stored: torch.dtype) -> tuple[Any, torch.dtype]:
        """The model with the adapter, which is saved as it is trained."""
        whole = sum(parameter.numel() for parameter in model.parameters())
        size = _baq_size(model)
        heads = _classifier_heads(model) if self.args.task == "text-classification" else []
        in_full = [*heads, *untrained_modules(model, self._missing)]
        wrapped = self._adapted(model, self._config(in_full))
        self._model_config = model.config
        self._about = {
            "adapter": self.args.adapter,
            "adapter_kwargs": self.args.keywords(),
            "trained": sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
            "base_parameters": whole + (size.weights if size else 0),
            "base_bits": size.bits if size else None,
            "quantization": self.args.quantization_options(),
        }
        return wrapped, torch.float32

    def facts(self, found: dict[str, Any]) -> dict[str, Any]:
        """With the adapter."""
        model = describe_source(needed(self.args, "model"))
        whole = {"parameters": self._about["base_parameters"]} if "parameters" in found else {}
        source = f"{model} with the adapter {self.args.adapter}"
        return {**found, **whole, **self._about, "source": source}

    def write_card(
        self, write: Callable[..., None], staged: Path, final: Path, facts: dict[str, Any], *of: Any
    ) -> None:
        """The card, the config to load the model with, and the model itself if it is new."""
        source, place = self._source, self._source
        if facts["quantization"] is not None:
            # from wherever it is loaded; a relative path would be looked for where Python runs
            place = str(final.resolve() / BASE)
        elif Path(source).exists():
            place = str(Path(source).resolve())
        path = staged / CONFIG
        saved = {**json.loads(path.read_text("utf-8")), "base_model_name_or_path": place}
        part = path.with_suffix(".tmp")
        part.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(part, path)
        write_base(self.args, source, self._model_config, staged / BASE)
        write(staged, final.name, facts, *of)
        write_adapter_card(staged, final.name, facts, self.args)

    def _config(self, in_full: Iterable[str]) -> Any:
        name, keywords = self.args.adapter, self.args.keywords()
        task = _TASK_TYPES[self.args.task]
        known: Any = adapter_config(name, keywords, task_type=task)
        if known.is_prompt_learning and name != "prefix_tuning" and task == "CAUSAL_LM":
            raise ValueError(
                f"adapter={name!r} puts tokens before the text that have no labels: take another."
            )
        own = keywords.pop("modules_to_save", None) or []
        left = _HEADS if task == "SEQ_CLS" else set()
        wanted = [one for one in dict.fromkeys([*own, *in_full]) if one not in left]
        if not hasattr(known, "modules_to_save") and (wanted or task == "SEQ_CLS"):
            raise ValueError(
                f"adapter={name!r} saves no module in full, and the head, or what the checkpoint "
                "has no weights for, has to be: take another."
            )
        more = {"modules_to_save": wanted} if wanted else {}
        return adapter_config(name, keywords, task_type=task, **more)

    def _check_fit(self) -> None:
        """Whether the adapter finds its modules, before hours of quantization."""
        config = AutoConfig.from_pretrained(self._source)
        with torch.device("meta"):
            model: Any = pretrained_class(self._source, config)._from_config(config)
            # an adapter that starts from the weights cannot do so without them
            with contextlib.suppress(NotImplementedError):
                self._adapted(model, adapter_config(self.args.adapter, self.args.keywords()))

    def _adapted(self, model: Any, config: Any) -> Any:
        try:
            return get_peft_model(model, config)
        except (TypeError, ValueError) as error:
            name, keywords = self.args.adapter, self.args.keywords()
            raise ValueError(f"adapter={name!r}, adapter_kwargs={keywords!r}: {error}") from error


def untrained_modules(model: nn.Module, missing: set[str]) -> list[str]:
    """The modules that a checkpoint has no weights for, each as a whole.

    Args:
        model: as it was loaded.
        missing: names of parameters.

    Raises:
        ValueError: a single parameter of a module with others below it, which peft cannot train
            alone.
    """
    names = {name for name, _ in model.named_parameters()}
    left, found = missing & names, []
    for name, _ in model.named_modules() if left else ():
        inside = {one for one in names if one.startswith(f"{name}.")}
        if name and inside and inside <= left:
            found.append(name)
            left -= inside
    for name in sorted(left):
        owner = name.rpartition(".")[0]
        if not owner or any(True for _ in model.get_submodule(owner).children()):
            raise ValueError(
                f"the checkpoint has no {name}, which would be drawn anew at every load: train the "
                "model without an adapter first, and save it."
            )
        found.append(owner)
    return list(dict.fromkeys(found))


def _baq_size(model: Any) -> SizeReport | None:
    """Of a model that is quantized by BAQ."""
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    return size_report(model) if getattr(config, "quant_method", None) == "baq" else None


def _classifier_heads(model: Any) -> list[str]:
    """What a classifier has besides the encoder."""
    return [
        name
        for name, part in model.named_children()
        if part is not model.base_model and any(True for _ in part.parameters())
    ]
