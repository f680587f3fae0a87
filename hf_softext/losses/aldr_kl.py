"""ALDR-KL: LDR-KL with a temperature for every training sample."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hf_softext.losses.base import SoftextLoss
from hf_softext.losses.ldr_kl import NORMALIZATIONS, ldr_kl, normalize_scores

_BUFFERS = ("lambdas", "updates")


class AldrKlLoss(SoftextLoss):
    r"""`ldr_kl` with a $\lambda_i$ learned for sample i; a sure sample gets a smaller one.

    $$\lambda_i \leftarrow \lambda_0\Bigl(1 - \frac{\mathrm{KL}(p_i, \text{uniform})}{\alpha\log
    C}\Bigr), \quad p_i = \mathrm{softmax}(f_i/\lambda_i), \qquad
    \ell_i = \lambda_i\Bigl(\log\sum_k e^{d_k/\lambda_i} - \log C\Bigr) -
    \frac{\alpha\log C}{2\lambda_0}(\lambda_i - \lambda_0)^2$$

    with d of `LdrKlLoss`. No derivative goes through $\lambda_i$.

    Args:
        lam: $\lambda_0 > 0$. 10, the default, as in the authors' experiments.
        alpha: $\alpha > 1$, so that $\lambda_i \ge \lambda_0(1 - 1/\alpha)$; 2 as theirs.
        margin: at least 0; 0.1 as theirs.
        normalize: see `normalize_scores`; "l1" as theirs, to which the other defaults belong.
        **common: those of `SoftextLoss`.

    Raises:
        ValueError: in training: not fitted, sample_index outside the training set, or one class.

    Notes:
        p gets 1e-5 in every class, as in the authors' code. Of a sample twice in a batch the
        smaller $\lambda$ is kept, in whatever order. One that is not finite is not kept. Evaluation
        has $\lambda_0$ for all rows and ignores `sample_index`, which there is of another set.

    Reference:
        D. Zhu, Y. Ying, T. Yang, "Label Distributionally Robust Losses for Multi-class
        Classification: Consistency, Robustness and Adaptivity", 2023, arXiv 2112.14869.
    """

    name = "aldr_kl"
    kinds = frozenset({"multiclass"})
    needs = frozenset({"sample_index"})
    stateful = True
    fits = True

    lambdas: Tensor
    updates: Tensor
    step: Tensor

    def __init__(
        self,
        lam: float = 10.0,
        alpha: float = 2.0,
        margin: float = 0.1,
        normalize: str = "l1",
        **common: Any,
    ):
        super().__init__(**common)
        for name, value, least in (("lam", lam, 0), ("alpha", alpha, 1)):
            if not least < value < math.inf:
                raise ValueError(f"{name}={value!r} must be above {least}, and finite.")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin={margin!r} must be at least 0, and finite.")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize={normalize!r} must be one of {', '.join(NORMALIZATIONS)}.")
        self.lam = lam
        self.alpha = alpha
        self.margin = margin
        self.normalize = normalize
        self.register_buffer("lambdas", torch.zeros(0))
        self.register_buffer("updates", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def fit(self, labels: Tensor) -> None:
        """Begin with $\\lambda_0$ for each row of the training set, ignored ones too."""
        self.lambdas = self.lambdas.new_full((len(labels),), self.lam)
        self.updates = self.updates.new_zeros(len(labels))
        self.step.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # how many samples there are is known from fit, or from what is loaded
        for name in _BUFFERS:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def synchronize(self) -> None:
        """Each sample gets the state of the process that saw it last; of several the last rank."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        size, rank = dist.get_world_size(), dist.get_rank()
        mine = self.updates * size + rank
        last = mine.clone()
        dist.all_reduce(last, dist.ReduceOp.MAX)
        dist.all_reduce(self.step, dist.ReduceOp.MAX)
        # one process adds something to 0, which is exact
        self.lambdas = torch.where(mine == last, self.lambdas, 0.0)
        dist.all_reduce(self.lambdas, dist.ReduceOp.SUM)
        self.updates = last // size

    def per_sample(
        self, logits: Tensor, labels: Tensor, sample_index: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """(N,) for logits (N, C), labels (N,) and sample_index (N,), int64."""
        scores = normalize_scores(logits, self.normalize)
        if not self.training or sample_index is None:
            return ldr_kl(scores, labels, self.lam, self.margin)
        strength = self.alpha * math.log(logits.shape[-1])
        if strength == 0:
            raise ValueError(f"logits: {self.name!r} needs at least 2 classes.")
        lam = self._update(scores.detach(), sample_index, strength)
        return ldr_kl(scores, labels, lam, self.margin) - 0.5 * strength / self.lam * (
            (lam - self.lam).square()
        )

    @torch.no_grad()
    def _update(self, scores: Tensor, sample_index: Tensor, strength: float) -> Tensor:
        known = len(self.lambdas)
        if known == 0:
            raise ValueError(f"{self.name!r} knows no samples: call fit(labels) first.")
        ids = sample_index.long()
        if ids.shape != scores.shape[:1] or bool(((ids < 0) | (ids >= known)).any()):
            raise ValueError(
                f"sample_index={sample_index.tolist()} must be one number from 0 to {known - 1} a "
                "row: where it stands in the training set that fit has seen."
            )
        old = self.lambdas[ids]
        p = (scores / old.to(scores)[:, None]).softmax(-1) + 1e-5
        p = p / p.sum(-1, keepdim=True)
        divergence = (p * (p * p.shape[-1]).log()).sum(-1).clamp(min=0)
        new = self.lam * (1 - divergence / strength)
        kept = torch.where(new.isfinite(), new.to(old), old)
        # not an assignment by index, of which the winner is not defined
        self.lambdas.scatter_(0, ids, math.inf).scatter_reduce_(0, ids, kept, "amin")
        self.step += 1
        self.updates[ids] = self.step
        return new
