"""A layer with its activation, f(Wx + b), as random features and a trained readout of them."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_softext.adapters.snnk._common import check_size, computes_as
from hf_softext.adapters.snnk.kernels import KERNELS
from hf_softext.adapters.snnk.random_features import RandomFeatures
from hf_softext.functional.without_autocast import without_autocast


class SnnkLinear(nn.Module):
    r"""$y = V \phi(x)$ in the place of $f(W x + b)$; V, (O, R), is all that is trained.

    A linear layer and the activation behind it become one module of O R trained numbers instead of
    O (D + 1).

        pooler.dense = SnnkLinear.from_linear(pooler.dense, num_features=64)
        pooler.activation = nn.Identity()

    Args:
        in_features: D.
        out_features: O.
        num_features: R. In the authors' scripts 8 to 512.
        kernel: "relu" (the default), "linear" (f is the identity), "cos" or "sin".
        bias: whether the layer that V starts from has one; see `RandomFeatures`.
        **options: `orthogonal`, `equal_norms`, `floor`, `normalize` and `seed` of `RandomFeatures`,
            with its defaults. The authors' replacement of feed-forward layers has a floor of -5.

    Attributes:
        weight: V, (O, R).
        features: the fixed features; `features.projection` is saved with the module.

    Raises:
        ValueError: a value that is not allowed, or an input of another width.

    Notes:
        "relu" does **not** estimate relu(Wx + b): features on both sides give the arc-cosine kernel
        of order 1, which is positive for orthogonal vectors too. It is another family of functions,
        of which V chooses one. "cos" and "sin" are unbiased estimates of cos(Wx + b) and
        sin(Wx + b), with a standard error of about exp((|x|² + |w|²) / 2) / sqrt(R): they are of
        use where both lengths are about 1. "linear" is exact where G has equal norms and R is a
        multiple of the width.

        Features and readout are computed in float32 (float64 where the input or V is), and cast to
        the dtype of the input once.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225, from the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_features: int,
        kernel: str = "relu",
        *,
        bias: bool = True,
        **options: Any,
    ):
        super().__init__()
        check_size("out_features", out_features)
        self.in_features, self.out_features = in_features, out_features
        self.features = RandomFeatures(in_features, num_features, kernel, bias=bias, **options)
        self.weight = nn.Parameter(torch.empty(out_features, num_features))
        self.reset_parameters()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, num_features: int, kernel: str = "relu", **options: Any
    ) -> "SnnkLinear":
        """The features of a linear layer's weight and bias as V.

        Args:
            linear: the layer that is replaced, of which nothing is kept.
            num_features: R.
            kernel: what stands for the layer and the activation behind it.
            **options: `orthogonal`, `equal_norms`, `floor`, `normalize` and `seed`.

        Raises:
            TypeError: no `torch.nn.Linear` with a weight of floating dtype, or a subclass that
                computes something else.

        Warns:
            UserWarning: "cos" or "sin", and rows of the weight that are so long that the standard
                error is above 1 for any input. It grows with the length of inputs in the same way,
                which is not known here: without `normalize` they must be of a length of about 1.
        """
        if not computes_as(linear, nn.Linear) or not linear.weight.is_floating_point():
            raise TypeError(
                f"SnnkLinear.from_linear takes a torch.nn.Linear with a weight that is not "
                f"quantized, not a {type(linear).__name__}."
            )
        made = cls(
            linear.in_features,
            linear.out_features,
            num_features,
            kernel,
            bias=linear.bias is not None,
            **options,
        )
        made.to(linear.weight.device, linear.weight.dtype)
        _warn_of_length(linear.weight, made.features)
        made.set_weights(linear.weight, linear.bias)
        made.weight.requires_grad_(linear.weight.requires_grad)
        return made.train(linear.training)

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Make V that of a layer.

        Args:
            weight: W, (O, D).
            bias: b, (O,), or None.

        Raises:
            ValueError: other sizes.
        """
        if len(weight) != self.out_features:
            raise ValueError(
                f"the weight has shape {tuple(weight.shape)}: ({self.out_features}, "
                f"{self.in_features}) is needed."
            )
        self.weight.copy_(self.features.of_weights(weight, bias))

    def reset_parameters(self) -> None:
        """Make V that of a linear layer as torch starts it."""
        if self.weight.is_meta:
            return
        fresh = nn.Linear(self.in_features, self.out_features, self.features.bias)
        fresh.to(self.features.projection.device)
        self.set_weights(fresh.weight, fresh.bias)

    def forward(self, x: Tensor) -> Tensor:
        """V φ(x).

        Args:
            x: (..., D).

        Returns:
            (..., O), of the dtype of x.
        """
        features = self.features(x)
        dtype = torch.promote_types(features.dtype, self.weight.dtype)
        with without_autocast(x):
            return F.linear(features.to(dtype), self.weight.to(dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        """As for a layer of torch."""
        return f"out_features={self.out_features}"


def _warn_of_length(weight: Tensor, features: RandomFeatures) -> None:
    """Tell where an estimate is worse than none whatever the input."""
    if KERNELS[features.kernel].parts == 1 or weight.is_meta:
        return
    longest = weight.detach().float().norm(dim=1).max().item()
    exponent = (longest**2 + (features.normalize or 0.0) ** 2) / 2
    # as a logarithm, which does not overflow
    if exponent > math.log(features.num_features) / 2:
        warnings.warn(
            f"kernel={features.kernel!r} with num_features={features.num_features}: rows of the "
            f"weight are up to {longest:.3g} long, and the standard error of the estimate, about "
            "exp((|x|² + |w|²) / 2) / sqrt(num_features), is above 1, the largest value of a "
            'cosine: scale the weight down, or use kernel="relu".',
            UserWarning,
            stacklevel=3,
        )
