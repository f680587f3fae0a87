"""A teacher's logits as a second label: on the same head, or on one of their own."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.losses._extras import like_logits
from hf_softext.losses.base import SoftextLoss

FORMS = ("norm", "binary_kl")


class KdLoss(SoftextLoss):
    r"""Cross-entropy, and the softened distribution of a teacher.

    $$\ell = (1-\alpha)\,\text{CE}(s, y) + \alpha\,T^2\,
    \text{KL}\big(\text{softmax}(t/T)\,\Vert\,\text{softmax}(s/T)\big)$$

    Args:
        temperature: T above 0; 4 by default.
        alpha: from 0, the labels alone, to 1, the teacher alone; 0.5 by default.
        **common: those of `SoftextLoss`.

    Notes:
        Needs `teacher_logits`, (..., C), through which no gradient goes. In evaluation without them
        it is the cross-entropy alone, not multiplied by $1-\alpha$.

        $T^2$ keeps the size of the teacher's gradient when T changes.

    Reference:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv
        1503.02531. T = 4 is that of the baseline in the code of arXiv 2411.08937.
    """

    name = "kd"
    kinds = frozenset({"multiclass"})
    needs = frozenset({"teacher_logits"})

    def __init__(self, temperature: float = 4.0, alpha: float = 0.5, **common: Any):
        super().__init__(**common)
        _check_positive("temperature", temperature)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha!r} must be from 0 to 1.")
        self.temperature = temperature
        self.alpha = alpha

    def per_sample(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """(N,) for logits and teacher_logits (N, C) and labels (N,)."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        if teacher_logits is None:
            return losses
        teacher = like_logits("teacher_logits", teacher_logits.detach(), logits)
        log_q = (teacher / self.temperature).log_softmax(-1)
        log_p = (logits / self.temperature).log_softmax(-1)
        divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
        return (1 - self.alpha) * losses + self.alpha * self.temperature**2 * divergence


class DualHeadLoss(SoftextLoss):
    r"""Cross-entropy on the head that is kept, the teacher on an auxiliary one.

    $$\ell = \gamma\,\text{CE}(s, y) + \alpha\,T^2\sum_k d(a_k, t_k)$$

    with $s$ the logits, $a$ those of a second head on the same features and $t$ the teacher's. The
    two objectives pull a shared head in opposite directions, the features not. The second head is
    thrown away after training. $d$ is, with $\sigma$ the logistic function,

    - "norm": $\text{KL}\big(\text{B}(\tfrac12)\Vert\text{B}(\sigma(\tfrac{a-t}{T}))\big) =
      \log\cosh\frac{a - t}{2T}$, quadratic near 0, with a slope of at most $\frac1{2T}$;
    - "binary_kl": $\text{KL}\big(\text{B}(\sigma(\tfrac tT))\Vert\text{B}(\sigma(\tfrac aT))\big)$.

    Args:
        temperature: T above 0; 2, the default, in the authors' commands.
        gamma: weight of the cross-entropy, at least 0; 1 in the authors' commands.
        alpha: weight of the teacher, at least 0; 1 in the authors' commands for CIFAR-100, 0.1 for
            ImageNet.
        form: "norm", the paper's, or "binary_kl".
        **common: those of `SoftextLoss`.

    Notes:
        Needs `teacher_logits`, through which no gradient goes, and `aux_logits`, both (..., C). In
        evaluation without either it is the cross-entropy alone, not multiplied by $\gamma$.

        The authors' code takes logarithms of probabilities clamped to 1 - 1e-8, which is 1 in
        float32: differences of the logits above some 17 T give infinity and NaN there. The closed
        forms here have no such end.

    Reference:
        P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An, "Dual-Head Knowledge Distillation:
        Enhancing Logits Utilization with an Auxiliary Head", 2024, arXiv 2411.08937. The log-cosh
        form is derived here and equals theirs.
    """

    name = "dhkd"
    kinds = frozenset({"multiclass"})
    needs = frozenset({"teacher_logits", "aux_logits"})

    def __init__(
        self,
        temperature: float = 2.0,
        gamma: float = 1.0,
        alpha: float = 1.0,
        form: str = "norm",
        **common: Any,
    ):
        super().__init__(**common)
        _check_positive("temperature", temperature)
        for name, value in (("gamma", gamma), ("alpha", alpha)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be at least 0, and finite.")
        if form not in FORMS:
            raise ValueError(f"form={form!r} must be one of {', '.join(FORMS)}.")
        self.temperature = temperature
        self.gamma = gamma
        self.alpha = alpha
        self.form = form

    def per_sample(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        aux_logits: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """(N,) for logits, teacher_logits and aux_logits (N, C) and labels (N,)."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        if teacher_logits is None or aux_logits is None:
            return losses
        t = like_logits("teacher_logits", teacher_logits.detach(), logits) / self.temperature
        a = like_logits("aux_logits", aux_logits, logits) / self.temperature
        if self.form == "norm":
            half = (a - t) / 2
            distance = torch.logaddexp(half, -half) - math.log(2)
        else:
            yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(a))
            distance = yes + (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-a))
        return self.gamma * losses + self.alpha * self.temperature**2 * distance.sum(-1)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be above 0, and finite.")
