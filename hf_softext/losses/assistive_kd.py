"""Regression with two teachers, of which one says how far off is still near."""

import math
from typing import Any

import torch
from torch import Tensor

from hf_softext.losses._extras import like_logits
from hf_softext.losses.base import SoftextLoss


class AssistiveKdLoss(SoftextLoss):
    r"""A main term around a tolerant teacher, and a pull towards the side of each teacher.

    For a prediction p, its value y and a teacher's prediction x, let $e = |p - y|$ and
    $t = |x - y|$:

    $$\ell = m\,M(e, t_{\text{tol}}) + a\,A_{\text{tough}}(e, t_{\text{tough}}) +
    b\,A_{\text{tol}}(e, t_{\text{tol}})$$

    $$M = \begin{cases} 3e & e \le t \\ e^2 + 3t - t^2 & e > t \end{cases}, \qquad
    A = |e - t| \cdot \begin{cases} \alpha^+ & e > t > 0 \\ \alpha^- & \beta t \le e \le t \\
    0 & \text{else} \end{cases}$$

    A prediction worse than a teacher's is pushed harder; one that is better, yet not by much, is
    held back by a negative weight, one that is far better is left alone.

    Args:
        main: m.
        tough: a.
        tolerant: b.
        tough_far: $\alpha^+$ of the tough teacher.
        tough_near: $\alpha^-$ of the tough teacher.
        tolerant_far: $\alpha^+$ of the tolerant teacher.
        tolerant_near: $\alpha^-$ of the tolerant teacher.
        band: $\beta$, from 0 to 1.
        **common: those of `SoftextLoss`.

    Notes:
        All defaults are those of the authors' code, made for coordinates from -0.5 to 0.5.

        Needs `teacher_tough` and `teacher_tolerant`, predictions in the shape of the logits,
        through which no gradient goes. In evaluation without both it is the mean absolute error.

        Where a negative weight is, the loss can be below 0, and it is not monotonous in e: A jumps
        at $e = \beta t$, and M at $e = t$ changes its slope from 3 to 2t. A teacher that is exactly
        right gives no A, as in the authors' code, although the limit $t \to 0$ is $\alpha^+ e$.

    Reference:
        A. P. Fard, M. H. Mahoor, "Facial Landmark Points Detection Using Knowledge
        Distillation-Based Neural Networks", 2022, arXiv 2111.07047. Written from the formulas.
    """

    name = "assistive_kd"
    kinds = frozenset({"regression"})
    elementwise = True
    needs = frozenset({"teacher_tough", "teacher_tolerant"})

    def __init__(
        self,
        main: float = 2.0,
        tough: float = 1.0,
        tolerant: float = 1.0,
        tough_far: float = 1.9,
        tough_near: float = -0.45,
        tolerant_far: float = 1.8,
        tolerant_near: float = -0.4,
        band: float = 0.15,
        **common: Any,
    ):
        super().__init__(**common)
        for name, value in (("main", main), ("tough", tough), ("tolerant", tolerant)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be at least 0, and finite.")
        if not 0 <= band <= 1:
            raise ValueError(f"band={band!r} must be from 0 to 1.")
        self.main = main
        self.tough = tough
        self.tolerant = tolerant
        self.tough_far = tough_far
        self.tough_near = tough_near
        self.tolerant_far = tolerant_far
        self.tolerant_near = tolerant_near
        self.band = band

    def per_sample(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_tough: Tensor | None = None,
        teacher_tolerant: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        """(N, C) for predictions, values and both teachers' predictions, each (N, C)."""
        error = (logits - labels).abs()
        if teacher_tough is None or teacher_tolerant is None:
            return error
        tough = like_logits("teacher_tough", teacher_tough.detach(), logits)
        tolerant = like_logits("teacher_tolerant", teacher_tolerant.detach(), logits)
        hard, soft = (tough - labels).abs(), (tolerant - labels).abs()
        main = torch.where(error <= soft, 3 * error, error.square() + soft * (3 - soft))
        pull_hard = self._pull(error, hard, self.tough_far, self.tough_near)
        pull_soft = self._pull(error, soft, self.tolerant_far, self.tolerant_near)
        return self.main * main + self.tough * pull_hard + self.tolerant * pull_soft

    def _pull(self, error: Tensor, teacher: Tensor, far: float, near: float) -> Tensor:
        beyond = (error > teacher) & (teacher > 0)
        within = (error <= teacher) & (error >= self.band * teacher)
        return (far * beyond + near * within) * (error - teacher).abs()
