"""The kernels that an adapter can have."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional.kernel_features import linear_features, relu_features
from hf_softext.functional.trig_features import cos_features, cos_weights


@dataclass(frozen=True)
class Kernel:
    """The two towers of a kernel.

    Attributes:
        features: of (..., D), a projection (P, D) and a floor: (..., R).
        weights: the same for the rows of a weight: where V starts.
        parts: R / P, features for each row of the projection.
        length: what inputs are normalised to by default; None to leave them.
    """

    features: Callable[[Tensor, Tensor, float], Tensor]
    weights: Callable[[Tensor, Tensor, float], Tensor]
    parts: int = 1
    length: float | None = None

    def start(self, outputs: int, projection: Tensor, floor: float, std: float) -> Tensor:
        r"""What V starts from: the weights' tower of a random $W_0$ (O, D) of normal numbers.

        The tower sees of a row of $W_0$ its products with the rows of G and its length. Those are
        drawn: (O, P) numbers instead of (O, D), which would take seconds in a large model.

        Args:
            outputs: O.
            projection: G, (P, D), float32, on the CPU.
            floor: of the features.
            std: of $W_0$.

        Returns:
            (O, R), float32, on the CPU.
        """
        flat, rest = in_its_span(projection)
        w = torch.empty(outputs, flat.shape[1], dtype=torch.float32, device="cpu").normal_()
        # the length of what is orthogonal to all of G
        w[:, -1] = 0
        if rest:
            degrees = torch.tensor(float(rest), dtype=torch.float32, device="cpu")
            w[:, -1] = torch.distributions.Chi2(degrees).sample((outputs,)).sqrt()
        return self.weights(w * std, flat, floor)


def in_its_span(projection: Tensor) -> tuple[Tensor, int]:
    """The rows of G in an orthonormal basis of their span, and a zero for all that is outside.

    Args:
        projection: G, (P, D).

    Returns:
        (P, min(P, D) + 1), and how many dimensions are outside.
    """
    rows, columns = projection.shape
    if rows >= columns:
        return F.pad(projection, (0, 1)), 0
    # the inner products of its rows are those of G
    exact = projection.double()
    inside = torch.linalg.cholesky(exact @ exact.T).to(projection.dtype)
    return F.pad(inside, (0, 1)), columns - rows


def _linear(x: Tensor, projection: Tensor, floor: float) -> Tensor:
    return linear_features(x, projection)


def _cos(x: Tensor, projection: Tensor, floor: float) -> Tensor:
    return cos_features(x, projection)


def _cos_start(w: Tensor, projection: Tensor, floor: float) -> Tensor:
    return cos_weights(w, projection)


def _sin_start(w: Tensor, projection: Tensor, floor: float) -> Tensor:
    return cos_weights(w, projection, -math.pi / 2)


KERNELS = {
    "relu": Kernel(relu_features, relu_features),
    "linear": Kernel(_linear, _linear),
    # features of another length than about 1 span too many orders of magnitude to learn from
    "cos": Kernel(_cos, _cos_start, parts=2, length=1.0),
    "sin": Kernel(_cos, _sin_start, parts=2, length=1.0),
}
