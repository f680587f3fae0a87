"""What an SDM head is made of, and how it is fitted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from hf_softext.heads.pooling import check_pooling

ESTIMATORS = ("sdm_hr", "universal")
INDEXES = ("torch", "faiss")
FORMAT = 1


@dataclass(frozen=True)
class SdmConfig:
    """Settings of an SDM head; those that follow from the data are filled in by the fit.

    The estimator is that of the paper; where our default is not the paper's, it is chosen for some
    thousands of rows and a few minutes on a CPU, and the paper's value is named.

    Args:
        alpha: the accuracy to hold among admitted rows, for each class; above 0.5, up to 1. 0.95 as
            in the paper.
        exemplar_dim: M, the width of the vectors that are compared; the paper's is 1000.
        max_q: the longest run of neighbours that is counted. 2048 as in the paper; the similarity
            saturates there.
        estimator: "sdm_hr", or "universal", the author's earlier one with a learned rescaling.
        index: "torch", exact and chunked; or "faiss", exact too, which needs faiss installed. Both
            give the same, up to rows whose distances differ by rounding.
        num_splits: J, how often the rows are divided anew and a head is trained; the best is kept.
            The paper's is 10.
        epochs: of each; the paper's is 200.
        learning_rate: of Adam; the paper's is 1e-5.
        batch_size: 50 as in the paper.
        stratify: whether both halves of a split get the same share of every class. Ours: the
            authors' code divides at random and assumes balanced classes.
        refresh_every: after how many epochs similarity and distance of the training rows are
            searched anew, and the calibration loss is looked at; 1 as in the paper. More is faster.
        seed: of splits, weights and order.
        rescaler_epochs: most epochs of the universal estimator's rescaling; 1000 as in its paper.
        rescaler_patience: epochs above the best loss after which that ends; 10 as in its paper.
        rescaler_learning_rate: of its Adam; 1e-4 as in its paper.
        rescaler_batch_size: 1 as in its paper, which takes long.
        num_features: D.
        num_labels: C.
        id2label: name of every class.
        pooling: how a row of hidden states became a vector; None for features of another origin.
        layers: which hidden states.
        max_length: most tokens of a text in the fit, to which the pipeline cuts too; None: as many
            as the model takes.
        backbone: what `backbone_fingerprint` says of the model behind the features; None as above.

    Raises:
        ValueError: a value outside its range.
    """

    alpha: float = 0.95
    exemplar_dim: int = 128
    max_q: int = 2048
    estimator: str = "sdm_hr"
    index: str = "torch"
    num_splits: int = 3
    epochs: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 50
    stratify: bool = True
    refresh_every: int = 1
    seed: int = 0
    rescaler_epochs: int = 1000
    rescaler_patience: int = 10
    rescaler_learning_rate: float = 1e-4
    rescaler_batch_size: int = 1
    num_features: int | None = None
    num_labels: int | None = None
    id2label: Mapping[int, str] = field(default_factory=dict)
    pooling: str | None = None
    layers: tuple[int, ...] = (-1,)
    max_length: int | None = None
    backbone: Mapping[str, Any] | None = None

    def __post_init__(self):
        for name, choices in (("estimator", ESTIMATORS), ("index", INDEXES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}."
                )
        counts = ("exemplar_dim", "max_q", "num_splits", "epochs", "batch_size", "refresh_every")
        counts += ("rescaler_epochs", "rescaler_patience", "rescaler_batch_size")
        for name in (*counts, "num_features", "num_labels", "max_length"):
            value = getattr(self, name)
            if name not in counts and value is None:
                continue
            if not _is(value, Integral) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1.")
            object.__setattr__(self, name, int(value))
        if not _is(self.seed, Integral):
            raise ValueError(f"seed={self.seed!r} must be a whole number.")
        check_alpha(self.alpha)
        for name in ("learning_rate", "rescaler_learning_rate"):
            value = getattr(self, name)
            if not _is(value, Real) or not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r} must be above 0, and finite.")
            object.__setattr__(self, name, float(value))
        # JSON does not know numpy's
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "alpha", float(self.alpha))
        if not isinstance(self.stratify, bool):
            raise ValueError(f"stratify={self.stratify!r} must be True or False.")
        if self.pooling is not None:
            check_pooling(self.pooling)
        for name, kind in (("id2label", Mapping), ("backbone", Mapping | None)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a mapping.")
        whole = isinstance(self.layers, tuple | list) and all(
            _is(layer, Integral) for layer in self.layers
        )
        if not whole:
            raise ValueError(f"layers={self.layers!r} must be whole numbers, such as (-1,).")
        # JSON turns keys into text and tuples into lists
        object.__setattr__(self, "id2label", {int(k): str(v) for k, v in self.id2label.items()})
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "format": FORMAT,
            **asdict(self),
            "id2label": {str(key): value for key, value in self.id2label.items()},
            "layers": list(self.layers),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SdmConfig":
        """The reverse of `to_dict`.

        Raises:
            ValueError: another format, or a setting that this version does not know.
        """
        if values.get("format") != FORMAT:
            raise ValueError(
                f"format={values.get('format')!r} of this SDM head is not {FORMAT}, which is the "
                "one this version of hf_softext reads: update it, or fit the head again."
            )
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known - {"format"})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: an SDM head has no such setting.")
        return cls(**{name: value for name, value in values.items() if name in known})


def _is(value: Any, kind: type) -> bool:
    # a bool is an int to isinstance
    return isinstance(value, kind) and not isinstance(value, bool)


def check_alpha(alpha: float) -> None:
    """Raise ValueError for an accuracy that cannot be asked for."""
    if not _is(alpha, Real) or not 0.5 < alpha <= 1:
        raise ValueError(
            f"alpha={alpha!r} must be above 0.5 and at most 1: it is the accuracy to hold, such as "
            "0.95, not the share of errors."
        )
