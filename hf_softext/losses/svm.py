"""The losses of support vector machines: hinges on margins."""

import math
from typing import Any

import torch
from torch import Tensor

from hf_softext.losses.base import SoftextLoss

REDUCTIONS = ("mean", "sum")


class _OneVsRestLoss(SoftextLoss):
    """A hinge on every logit by itself; what L1 and L2 share."""

    kinds = frozenset({"multiclass", "token", "binary", "multilabel"})
    elementwise = True
    power: int

    def __init__(self, class_reduction: str = "mean", penalty: float = 0.0, **common: Any):
        super().__init__(**common)
        if class_reduction not in REDUCTIONS:
            raise ValueError(
                f"class_reduction={class_reduction!r} must be one of {', '.join(REDUCTIONS)}."
            )
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty={penalty!r} must be at least 0, and finite.")
        self.class_reduction = class_reduction
        self.penalty = penalty
        if penalty > 0:
            self.needs = frozenset({"head_weight"})  # pyright: ignore[reportAttributeAccessIssue]

    def per_sample(
        self, logits: Tensor, labels: Tensor, head_weight: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """(N,) for class indices (N,); (N, C) for labels (N, C)."""
        if labels.dim() == 1:
            sign = torch.full_like(logits, -1.0).scatter_(1, labels[:, None], 1.0)
        else:
            sign = 2.0 * labels - 1.0
        losses = (1.0 - sign * logits).relu() ** self.power
        if labels.dim() == 1:
            losses = losses.mean(-1) if self.class_reduction == "mean" else losses.sum(-1)
        if self.penalty > 0 and head_weight is not None:
            # in every row, so that whatever the sum is divided by leaves one penalty
            losses = losses + 0.5 * self.penalty * head_weight.to(logits).square().sum()
        return losses


class L1SvmLoss(_OneVsRestLoss):
    r"""$\ell_k = \max(0, 1 - t_k f_k)$, $t_k = 1$ for the class of the row and -1 for the others.

    A linear support vector machine for each class against the rest, on the features of the
    network. The class is that of the largest score; a binary problem is decided at 0.

    Args:
        class_reduction: whether the loss of a row with the index of a class is the "mean" (the
            default) or the "sum" of its $\ell_k$. Labels of shape (N, C) have a loss for each
            element whatever it is.
        penalty: adds $\frac12\,\mathrm{penalty}\,\lVert W \rVert^2$ of the `head_weight` W (C, D),
            which training must then hand over. 0, the default, where an optimizer's weight decay
            does that already. In evaluation, where W may be absent, the penalty is then left out.
        **common: those of `SoftextLoss`.

    Notes:
        With the "sum" and penalty $= 1/(cN)$ the loss of N rows is, over $cN$, the textbook's
        $\frac12\lVert W\rVert^2 + c\sum \ell$. The bias is not penalised.
        Labels between 0 and 1 have $t = 2y - 1$.

    Reference:
        Y. Tang, "Deep Learning using Linear Support Vector Machines", 2013, arXiv 1306.0239,
        equation 5; A. F. Agarap, "An Architecture Combining Convolutional Neural Network (CNN) and
        Support Vector Machine (SVM) for Image Classification", 2017, arXiv 1712.03541.
    """

    name = "l1_svm"
    power = 1


class L2SvmLoss(_OneVsRestLoss):
    r"""$\ell_k = \max(0, 1 - t_k f_k)^2$, $t_k = 1$ for the class of the row and -1 for the others.

    As `l1_svm`, with the hinge squared: differentiable, and harder on large violations.

    Args:
        class_reduction: as for `L1SvmLoss`.
        penalty: as for `L1SvmLoss`.
        **common: those of `SoftextLoss`.

    Notes:
        Agarap's code for CNN-SVM is the "mean" with the mean of $W^2$ added, without the half; that
        for GRU-SVM the sums over classes and rows. Both penalise W in the loss.

    Reference:
        Y. Tang, "Deep Learning using Linear Support Vector Machines", 2013, arXiv 1306.0239; A. F.
        Agarap, arXiv 1712.03541 and 1709.03082, 2017.
    """

    name = "l2_svm"
    power = 2


class CrammerSingerLoss(SoftextLoss):
    r"""$\ell = \max(0, 1 + \max_{k \ne y} f_k - f_y)$: one margin a row, to the best other class.

    Args:
        squared: whether the hinge is squared; not by default.
        **common: those of `SoftextLoss`.

    Notes:
        Where several other classes are the best, the derivative is shared evenly among them.

    Reference:
        K. Crammer, Y. Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines", JMLR 2, 2001; in a network: Y. Tang, "Deep Learning using Linear Support Vector
        Machines", 2013, arXiv 1306.0239.
    """

    name = "crammer_singer"
    kinds = frozenset({"multiclass", "token"})

    def __init__(self, squared: bool = False, **common: Any):
        super().__init__(**common)
        self.squared = squared

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits (N, C) and labels (N,)."""
        index = labels[:, None]
        others = logits.scatter(1, index, float("-inf")).amax(-1)
        hinge = (1.0 + others - logits.gather(1, index)[:, 0]).relu()
        return hinge.square() if self.squared else hinge
