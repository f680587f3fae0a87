"""The Z-loss of the spherical family, which is not the z-loss of PaLM."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, linalg

from hf_softext.functional import gram_standardized
from hf_softext.losses.base import SoftextLoss


class SphericalZLoss(SoftextLoss):
    r"""$\ell = \frac1a\,\mathrm{softplus}(a(b - z_y))$ of the label's standardised logit.

    $$z_y = \frac{o_y - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
    \mu = \tfrac1C\sum_k o_k, \quad \sigma^2 = \tfrac1C\sum_k (o_k - \mu)^2$$

    **This is not the "z-loss" of PaLM, T5X and Liger**, a penalty $(\log\sum_k e^{o_k})^2$ beside
    cross-entropy. This one replaces cross-entropy. It is a loss for rankings: invariant to adding
    a constant to all logits and to scaling them, so that their softmax is no probability.

    As only $o_y$, $\sum o$ and $\sum o^2$ enter, a linear head needs no logits at all: see
    `linear`.

    Args:
        a: $a > 0$, how sharply the loss bends at b.
        b: what the label's logit should exceed, in standard deviations. At most $\sqrt{C-1}$ can
            be reached. Both together act like a soft choice of k in top-k; 1 and 2 are this
            package's defaults, for some hundred classes. The paper tunes them (its values could
            not be read); the authors' timing example has 1 and 0.
        eps: $\epsilon \ge 0$, added to the variance: for a row whose logits are all equal. The
            authors' code adds it to $\sigma$.
        **common: those of `SoftextLoss`.

    Notes:
        The derivative grows with $1/\sigma$: a head that begins near 0 takes very large first
        steps, so clip gradients, or begin with a trained head. The length of the head's weights
        has no effect on the loss; let weight decay hold it.

    Reference:
        A. de Brébisson, P. Vincent, "The Z-loss: a shift and scale invariant classification loss
        belonging to the Spherical Family", 2016, arXiv 1604.08859.
    """

    name = "spherical_z"
    kinds = frozenset({"multiclass", "token"})

    def __init__(self, a: float = 1.0, b: float = 2.0, eps: float = 1e-12, **common: Any):
        super().__init__(**common)
        if not 0 < a < float("inf"):
            raise ValueError(f"a={a!r} must be above 0, and finite.")
        if not abs(b) < float("inf"):
            raise ValueError(f"b={b!r} must be finite.")
        if not 0 <= eps < float("inf"):
            raise ValueError(f"eps={eps!r} must be at least 0, and finite.")
        self.a = a
        self.b = b
        self.eps = eps

    def per_sample(self, logits: Tensor, labels: Tensor, **extras: Any) -> Tensor:
        """(N,) for logits (N, C) and labels (N,)."""
        _enough(logits.shape[-1])
        # not the mean square less the square of the mean, which cancel
        centred = logits - logits.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1) + self.eps).rsqrt()
        return self._of(centred.gather(1, labels[:, None])[:, 0] * scale)

    def gradient_(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Loss of each row; the logits become their weighted derivative."""
        classes, index = logits.shape[-1], labels[:, None]
        _enough(classes)
        centred = logits.sub_(logits.mean(-1, keepdim=True))
        scale = (linalg.vector_norm(centred, dim=-1).square() / classes + self.eps).rsqrt()
        z = centred.gather(1, index)[:, 0] * scale
        # w dl/dz / sigma, of which each logit gets [k = y] - 1/C - z_y z_k / C
        slope = -weight * (self.a * (self.b - z)).sigmoid() * scale
        centred.mul_((-slope * z * scale / classes)[:, None]).sub_((slope / classes)[:, None])
        centred.scatter_add_(1, index, slope[:, None])
        return self._of(z)

    def linear(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        row_weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        r"""$\sum_i w_i\ell_i$ of the logits $h W^\top + b$, which are never computed.

        The products are with the D x D Gram matrix of the centred weight: where there are more
        rows than D this is also less work. Exact, and differentiable as often as wanted.

        Args:
            hidden: (N, D), floating point.
            weight: (C, D), same dtype.
            labels: (N,), int64; any value where the row's weight is 0.
            row_weight: (N,); rows of weight 0 are left out before anything is computed.
            bias: (C,), or None.

        Returns:
            A scalar, float32 (float64 for float64).

        Raises:
            ValueError: fewer than 3 classes, or shapes that do not fit.
        """
        _enough(weight.shape[0])
        counts = row_weight.nonzero()[:, 0]
        z = gram_standardized(hidden[counts], weight, labels[counts], bias, eps=self.eps)
        return (self._of(z) * row_weight[counts]).sum()

    def _of(self, z: Tensor) -> Tensor:
        return F.softplus(self.a * (self.b - z)) / self.a


def _enough(classes: int) -> None:
    if classes < 3:
        raise ValueError(
            f"'spherical_z' has no gradient for {classes} classes, as two standardised logits are "
            "always 1 and -1: use 'ce', or three classes."
        )
