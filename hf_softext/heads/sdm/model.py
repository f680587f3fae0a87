"""A frozen backbone and an SDM head as one model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from hf_softext.heads.backbone import backbone, evaluating
from hf_softext.heads.pooling import pooled_features
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.output import SdmOutput
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

    Raises:
        ValueError: the head was fitted on another model.
    """

    def __init__(self, model: nn.Module, head: SdmHead):
        super().__init__()
        check_attached(head, model)
        self.model = model
        self.head = head
        self._attached_dtype = self.dtype

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
            if folder.is_dir() and not (folder / "config.json").exists():
                raise OSError(
                    f"{folder} holds a head alone: load the model that it was fitted on, and give "
                    "it as model=."
                )
            model, found = AutoModel.from_pretrained(
                str(name_or_path), output_loading_info=True, **options
            )
            _drop_what_was_not_saved(model, found["missing_keys"])
        return cls.from_backbone(model, head)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write backbone and head into one folder, which `from_pretrained` and the pipeline take.

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
        model.save_pretrained(save_directory, **options)
        self.head.save_pretrained(save_directory)

    def forward(self, **inputs: Any) -> SdmOutput:
        """Predict.

        Args:
            **inputs: what the backbone's tokenizer gives, padded on either side; labels and what
                the backbone does not take are left out.

        Returns:
            See `SdmOutput`. Without rows, empty. Dropout is off, in training mode too.

        Raises:
            ValueError: a row without a token, or a backbone that was cast to another precision.
        """
        first = next((value for value in inputs.values() if isinstance(value, Tensor)), None)
        if first is not None and len(first) == 0:
            return self.head(torch.zeros(0, self.head.adaptor.exemplar.in_features))
        body, config = backbone(self.model), self.head.config
        check_precision(body, self._attached_dtype)
        with torch.no_grad(), evaluating(body):
            features = pooled_features(self.model, inputs, str(config.pooling), config.layers)
        return self.head(features)

    @property
    def config(self) -> Any:
        """Of the backbone."""
        return backbone(self.model).config

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
        """Of the backbone; None where it lies in one place."""
        return getattr(self.model, "hf_device_map", None)

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
