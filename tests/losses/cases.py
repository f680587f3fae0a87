"""The losses under test. A new loss is one more row; every common test then runs on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_softext.losses import SoftextLoss, get_loss


@dataclass(frozen=True)
class Case:
    """One loss on one kind of problem.

    Attributes:
        name: its name in the catalogue.
        kind: "multiclass", "token", "binary", "multilabel" or "regression".
        given: its arguments.
        extras: makes what else it needs for N rows of logits, from those logits.
        moves: whether its value in training changes from call to call.
    """

    name: str
    kind: str
    given: dict[str, Any] = field(default_factory=dict)
    extras: Callable[[Tensor], dict[str, Tensor]] = lambda logits: {}
    moves: bool = False

    @property
    def id(self) -> str:
        """For pytest."""
        return f"{self.name}-{self.kind}"

    @property
    def classes(self) -> int:
        """Logits a row."""
        return {"binary": 1, "regression": 1}.get(self.kind, 5)

    def make(self, rows: int = 6) -> SoftextLoss:
        """The loss, which has seen labels if it wants to."""
        loss = get_loss(self.name, **self.given)
        if loss.fits:
            loss.fit(self.labels(rows))
        return loss

    def logits(self, rows: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
        """(N, C) of every size."""
        draw = torch.Generator().manual_seed(3)
        z = torch.randn(rows, self.classes, generator=draw, dtype=torch.float64) * 2
        return z.to(dtype).requires_grad_()

    def labels(self, rows: int = 6) -> Tensor:
        """(N,) or (N, C), each class present."""
        draw = torch.Generator().manual_seed(4)
        if self.kind in ("multiclass", "token"):
            return torch.arange(rows) % self.classes
        if self.kind == "binary":
            return torch.arange(rows) % 2
        if self.kind == "regression":
            return torch.randn(rows, generator=draw, dtype=torch.float64)
        many = (torch.rand(rows, self.classes, generator=draw) < 0.5).double()
        many[:, 0], many[:, 1] = 1.0, 0.0
        return many

    def ignored(self, labels: Tensor, row: int) -> Tensor:
        """The labels with a row that does not count."""
        labels = labels.clone()
        labels[row] = -100
        return labels


def near(logits: Tensor, seed: int) -> Tensor:
    """Other logits, that of a teacher or of a perturbed input."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(logits.shape, generator=draw, dtype=torch.float64).to(logits.dtype)


def teacher(logits: Tensor) -> dict[str, Tensor]:
    """A teacher's logits."""
    return {"teacher_logits": near(logits, 5)}


def two_heads(logits: Tensor) -> dict[str, Tensor]:
    """A teacher's logits, and those of the second head."""
    return {"teacher_logits": near(logits, 5), "aux_logits": logits * 0.7 + near(logits, 6)}


def perturbed(logits: Tensor) -> dict[str, Tensor]:
    """Logits of a perturbed input."""
    return {"perturbed_logits": logits * 0.9 + 0.3 * near(logits, 7)}


def two_teachers(logits: Tensor) -> dict[str, Tensor]:
    """Predictions of two teachers, one for each row."""
    return {
        name: near(logits, 8 + i) for i, name in enumerate(("teacher_tough", "teacher_tolerant"))
    }


def numbered(logits: Tensor) -> dict[str, Tensor]:
    """Positions in the training set."""
    return {"sample_index": torch.arange(len(logits))}


def features(logits: Tensor) -> dict[str, Tensor]:
    """Features from which the logits could come."""
    wide = torch.cat([logits, 0.5 * logits.flip(-1) + 1], dim=-1)
    return {"features": wide}


def head(logits: Tensor) -> dict[str, Tensor]:
    """Features and the output layer's weight."""
    classes = logits.shape[-1]
    draw = torch.Generator().manual_seed(9)
    weight = torch.randn(classes, 2 * classes, generator=draw, dtype=torch.float64)
    return {**features(logits), "head_weight": weight.to(logits.dtype)}


CASES = [
    Case("ce", "multiclass"),
    Case("ce", "token", {"label_smoothing": 0.1}),
    Case("comp_sum", "multiclass", {"tau": 0.5}),
    Case("gce", "multiclass"),
    Case("mae", "token"),
    Case("stablemax_ce", "multiclass"),
    Case("spherical_z", "multiclass"),
    Case("ldr_kl", "multiclass", {"lam": 0.7, "margin": 0.3}),
    Case("ldr_kl", "token", {"normalize": "l1"}),
    Case("aldr_kl", "multiclass", extras=numbered, moves=True),
    Case("anyloss", "binary", {"amplify": 10.0}),
    Case("anyloss", "multilabel", {"metric": "balanced_accuracy", "amplify": 10.0}),
    Case("ensloss", "binary", moves=True),
    Case("ensloss", "multilabel", {"boxcox_lambda": 0.5}, moves=True),
    Case("decoupled_softmax", "multilabel"),
    Case("soft_topk", "multilabel", {"k": 2}),
    Case("l1_svm", "multiclass"),
    Case("l1_svm", "multilabel"),
    Case("l2_svm", "binary"),
    Case("l2_svm", "token"),
    Case("crammer_singer", "multiclass"),
    Case("normalized_softmax", "multiclass", extras=head),
    Case("hybrid_multilabel", "multilabel", extras=features),
    Case("kd", "multiclass", extras=teacher),
    Case("dhkd", "multiclass", extras=two_heads),
    Case("assistive_kd", "regression", extras=two_teachers),
    Case("adv_comp_sum", "multiclass", extras=perturbed),
    Case("dr_irat", "multiclass", extras=perturbed),
]
