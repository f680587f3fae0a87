r"""Universal random features of the cosine, in the log domain.

$\cos(\langle w, x\rangle + \beta) = \mathrm{Re}\, E_g[\Psi(w)\Phi(x)]$, the expectation of a
product of something that sees only x and something that sees only w.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional.without_autocast import without_autocast

# a = b = sqrt(i): of the pairs with a b = i the one with the lowest spread where x and w are of
# like length. The authors' notebook has a = i, b = 1.
BALANCED = complex(math.sqrt(0.5), math.sqrt(0.5))


def exponential_tower(
    x: Tensor, projection: Tensor, scale: complex = BALANCED, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""The logarithm of $\Phi_k(x) = (1 + 4M)^{D/4} R^{-1/2} \exp(s a \langle g_k, x\rangle - a^2
    |x|^2 / 2 - M |g_k|^2)$, $s = \sqrt{1 + 4M}$.

    For two towers with scales a and b and the same normal rows $g_k$, $E \sum_k \Phi_k(x) \Psi_k(w)
    = e^{a b \langle x, w\rangle}$, a product without a conjugate.

    Args:
        x: (..., D), float32 or float64.
        projection: rows g_k, (R, D), of the dtype of x.
        scale: a.
        shift: M, above -1/4.

    Returns:
        Logarithm of the modulus, and phase in radians: both (..., R). Autocast does not reach them.

    Reference:
        Sehanobish et al. 2024, arXiv 2310.13225: universal random features, from the authors'
        notebook; the logarithm is ours, as $(1 + 4M)^{D/4}$ alone exceeds float32 at D = 768.
    """
    square = scale * scale
    with without_autocast(x):
        z = F.linear(x, projection) * math.sqrt(1 + 4 * shift)
        half = x.square().sum(-1, keepdim=True) / 2
        constant = x.shape[-1] / 4 * math.log(1 + 4 * shift) - math.log(len(projection)) / 2
        log_modulus = scale.real * z - square.real * half + constant
        if shift:
            log_modulus = log_modulus - shift * projection.square().sum(-1)
        return log_modulus, scale.imag * z - square.imag * half


def cos_features(x: Tensor, projection: Tensor) -> Tensor:
    r"""The tower that sees x: [Re Φ, Im Φ].

    `cos_features(x, G) @ cos_weights(w, G, bias).T` estimates cos(x·w + bias). The frequency
    -1/2π, the conjugate of +1/2π, adds nothing to the real part and is left out.

    Args:
        x: (..., D), float32 or float64. The features grow as exp(|x| g / sqrt(2)) for a standard
            normal g: keep |x| near 1.
        projection: G, (R, D), of the dtype of x.

    Returns:
        (..., 2 R). Moduli are held below exp(80) in float32, exp(700) in float64.
    """
    return _parts(*exponential_tower(x, projection))


def cos_weights(w: Tensor, projection: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    r"""The tower that sees the weights: [Re Ψ, -Im Ψ]; with bias - π/2 it is that of the sine.

    Args:
        w: (O, D), float32 or float64.
        projection: G, (R, D), of the dtype of w.
        bias: (O,) or a number, in radians.

    Returns:
        (O, 2 R).
    """
    log_modulus, phase = exponential_tower(w, projection)
    shift = bias[:, None] if isinstance(bias, Tensor) else bias
    return _parts(log_modulus, -(phase + shift))


def _parts(log_modulus: Tensor, phase: Tensor) -> Tensor:
    limit = 700.0 if log_modulus.dtype == torch.float64 else 80.0
    modulus = log_modulus.clamp(max=limit).exp()
    return torch.cat((modulus * phase.cos(), modulus * phase.sin()), dim=-1)
