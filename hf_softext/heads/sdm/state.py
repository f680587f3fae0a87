"""What an SDM head holds."""

from typing import Any

from torch import Tensor, nn

from hf_softext.functional.empirical_cdf import ClassLists, class_lists
from hf_softext.heads.sdm.adaptor import ExemplarAdaptor
from hf_softext.heads.sdm.calibration import Calibration, Scores, plain_scores, rescaled_scores
from hf_softext.heads.sdm.config import SdmConfig
from hf_softext.heads.sdm.evidence import Support
from hf_softext.heads.sdm.region import Region

# filled by a fit or a file
STATE = (
    "support_exemplars",
    "support_labels",
    "support_predictions",
    *(f"calibration_{name}" for name in Calibration._fields),
    "min_similarity",
    "thresholds",
)
# of the universal estimator alone
RESCALING = (
    "rescaling_weight",
    "split_outputs",
    "split_similarity",
    "split_labels",
    "split_medians",
    "spread_similarity",
    "spread_offsets",
)


class SdmState(nn.Module):
    """Weights, support, calibration rows, and the region found on them.

    Args:
        config: with `num_features` and `num_labels`.

    Attributes:
        config: the settings.
        report: what the fit found: for each split its losses and its least similarity (None: no
            region), which split was kept, and how many rows went in.
        support_ids: an id for each support row.
        support_texts: its text, or None.

    Raises:
        ValueError: a config without sizes.
    """

    support_exemplars: Tensor
    support_labels: Tensor
    support_predictions: Tensor
    min_similarity: Tensor
    thresholds: Tensor
    rescaling_weight: Tensor
    spread_similarity: Tensor
    spread_offsets: Tensor

    def __init__(self, config: SdmConfig):
        super().__init__()
        if config.num_features is None or config.num_labels is None:
            raise ValueError("num_features and num_labels are missing: fit the head, or load one.")
        self.config = config
        self.report: dict[str, Any] = {}
        self.support_ids: list[str] = []
        self.support_texts: list[str | None] = []
        self.adaptor = ExemplarAdaptor(config.num_features, config.exemplar_dim, config.num_labels)
        self.requires_grad_(False)
        for name in self.state_names:
            self.register_buffer(name, None)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The buffers that a fit fills."""
        return STATE + (RESCALING if self.config.estimator == "universal" else ())

    @property
    def support(self) -> Support:
        """The rows that predictions are compared with."""
        return Support(self.support_exemplars, self.support_labels, self.support_predictions)

    @property
    def calibration(self) -> Calibration:
        """The rows that the region was found on."""
        return Calibration(*(getattr(self, f"calibration_{name}") for name in Calibration._fields))

    @property
    def region(self) -> Region:
        """Where predictions are admitted."""
        return Region(self.min_similarity, self.thresholds)

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Take buffers by name, and work out what follows from them."""
        for name, value in tensors.items():
            setattr(self, name, value)
        rows = self.calibration
        lists = {"similarity": class_lists(self._scores().similarity, rows.labels, rows.num_labels)}
        kept = rows.similarity > 0
        lists["distance"] = class_lists(
            rows.squared_distance[kept], rows.labels[kept], rows.num_labels
        )
        lists["output"] = rows.output_lists()
        # they are not saved: the calibration rows are
        for name, found in lists.items():
            self.register_buffer(f"_{name}_values", found.values, persistent=False)
            self.register_buffer(f"_{name}_offsets", found.offsets, persistent=False)

    def _load_from_state_dict(self, *_: Any) -> None:
        # ids, settings and ranks would stay those of before
        raise ValueError("an SDM head is more than its tensors: load it with from_pretrained.")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # casting a model to half precision must not round what neighbours are found by
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep, recurse)

    def _scores(self) -> Scores:
        if self.config.estimator == "universal":
            return rescaled_scores(self.calibration, self.rescaling_weight)[0]
        return plain_scores(self.calibration)

    def _lists(self, name: str) -> ClassLists:
        return ClassLists(getattr(self, f"_{name}_values"), getattr(self, f"_{name}_offsets"))
