"""A frozen backbone and an SDM head as one model."""

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from hf_softext.heads.backbone import backbone, evaluating
from hf_softext.heads.pooling import pooled_features
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.output import SdmOutput
from hf_softext.heads.sdm.saved_model import BACKBONE, SdmModelConfig, holds_backbone
from hf_softext.heads.sdm.saving import check_attached, check_precision, load_head

# of the options, what finds the head's files too
_DOWNLOAD = ("revision", "token", "cache_dir", "local_files_only")


class SdmForSequenceClassification(nn.Module):
    """A classifier of texts whose predictions come with evidence; see `SdmHead`.

    Make one with `from_backbone` or `from_pretrained`. Nothing in it is trained.

    Attributes:
        model: as it was given, with or without a head of its own; its own predictions are had by
            calling it.
        head: the SDM head.
        config: a copy of the backbone's, with the classes of the head; the backbone's own stays as
            it was.

    Raises:
        ValueError: the head was fitted on another model.
    """

    # a Trainer would pass num_items_in_batch among the inputs
    accepts_loss_kwargs = False

    def __init__(self, model: nn.Module, head: SdmHead):
        super().__init__()
        check_attached(head, model)
        self.model = model
        self.head = head
        self._attached_dtype = self.dtype
        self.config: Any = deepcopy(backbone(model).config)
        names = [str(head.label_name(label)) for label in range(head.thresholds.numel())]
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: label for label, name in enumerate(names)}
        # a Trainer gathers tensors of one row a text: predictions are logits, as of any classifier
        self.config.keys_to_ignore_at_inference = [
            entry.name for entry in fields(SdmOutput) if entry.name not in ("loss", "logits")
        ]

    @classmethod
    def from_backbone(cls, model: Any, head: SdmHead) -> "SdmForSequenceClassification":
        """Put a head behind the model that it was fitted on.

        Args:
            model: of transformers, in any precision, quantized or not; set to evaluation mode.
            head: is moved to where the model is.

        Raises:
            ValueError: the head was fitted on another model.
        """
        found = cls(model, head)
        head.to(found.device)
        return found.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, model: Any = None, **options: Any
    ) -> "SdmForSequenceClassification":
        """Load what `save_pretrained` wrote, or a head alone behind a model that is given.

        Args:
            name_or_path: a folder, or a repository of the hub.
            model: the backbone; None: the one that was saved with the head.
            **options: of `AutoModel.from_pretrained`, such as `device_map`. Another precision than
                the head was fitted with is refused.

        Raises:
            OSError: there are no such files; with a head alone, give `model`.
            ValueError: head and backbone do not belong together.
        """
        options = {name: value for name, value in options.items() if value is not None}
        download = {name: options[name] for name in _DOWNLOAD if name in options}
        head = load_head(name_or_path, None, download)
        if model is None:
            folder = Path(name_or_path)
            inner = BACKBONE if holds_backbone(name_or_path, download) else ""
            if folder.is_dir() and not (folder / inner / "config.json").exists():
                raise OSError(
                    f"{folder} holds a head alone: load the model that it was fitted on, and give "
                    "it as model=."
                )
            model, found = AutoModel.from_pretrained(
                str(name_or_path), subfolder=inner, output_loading_info=True, **options
            )
            _drop_what_was_not_saved(model, found["missing_keys"])
        return cls.from_backbone(model, head)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write backbone and head into one folder, which `from_pretrained` and the pipeline take.

        The backbone, a checkpoint as any, lies in `backbone/`. The `config.json` above it is of a
        kind that only this package knows, so that transformers refuses the folder where it would
        put a classifier of random weights on the backbone.

        Args:
            save_directory: is made if it is not there.
            **options: of the backbone's `save_pretrained`.

        Raises:
            ValueError: the backbone holds adapters, which are no part of a plain model's files.
        """
        if getattr(self.model, "peft_config", None):
            raise ValueError(
                "the backbone holds adapters: save these and the head (.head.save_pretrained) "
                "instead, and load with model=, or merge_and_unload() before the head is fitted."
            )
        # whole, with a head of its own: quantizers and encoder-decoders know only that
        model: Any = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        folder = Path(save_directory)
        model.save_pretrained(folder / BACKBONE, **options)
        SdmModelConfig(
            architectures=[type(self).__name__],
            id2label=self.config.id2label,
            label2id=self.config.label2id,
        ).save_pretrained(folder)
        self.head.save_pretrained(folder)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> SdmOutput:
        """Predict.

        Args:
            input_ids: (B, L), padded on either side.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            labels: (B,), int64; -100 is left out. With them the output has the mean cross-entropy
                of its logits as loss, for evaluation alone.
            **inputs: what else the backbone's tokenizer gives; what the backbone does not take is
                left out.

        Returns:
            See `SdmOutput`. Without rows, empty. Dropout is off, in training mode too.

        Raises:
            ValueError: a row without a token, a backbone that was cast to another precision, or
                labels in training mode: nothing is trained here.
        """
        if labels is not None and self.training and torch.is_grad_enabled():
            raise ValueError(
                "labels in training mode: neither backbone nor head are trained here. Fit a head "
                "with SdmHead.fit, and use a Trainer to evaluate or predict."
            )
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        inputs |= {name: value for name, value in given.items() if value is not None}
        first = next((value for value in inputs.values() if isinstance(value, Tensor)), None)
        if first is not None and len(first) == 0:
            return self.head(torch.zeros(0, self.head.adaptor.exemplar.in_features))
        body, config = backbone(self.model), self.head.config
        check_precision(body, self._attached_dtype)
        with torch.no_grad(), evaluating(body):
            features = pooled_features(self.model, inputs, str(config.pooling), config.layers)
        output = self.head(features)
        if labels is not None:
            loss = F.cross_entropy(output.logits, labels.to(output.logits.device))
            output = SdmOutput(**{**output, "loss": loss})
        return output

    @property
    def device(self) -> torch.device:
        """Of the backbone."""
        return next(backbone(self.model).parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone."""
        return next(backbone(self.model).parameters()).dtype

    @property
    def hf_device_map(self) -> Any:
        """Of the backbone; there is none where it lies in one place."""
        return getattr(self.model, "hf_device_map")  # noqa: B009

    def can_generate(self) -> bool:
        """No."""
        return False


def _drop_what_was_not_saved(model: Any, missing: Any) -> None:
    """Take out a pooler that the backbone had not and `AutoModel` made; nothing reads it."""
    if any(not name.startswith("pooler.") for name in missing):
        raise ValueError(
            f"weights are missing: {', '.join(sorted(missing)[:3])}. The folder is not one that "
            "SdmForSequenceClassification.save_pretrained wrote in full."
        )
    if missing:
        model.pooler = None
