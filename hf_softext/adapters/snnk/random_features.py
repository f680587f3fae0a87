"""The tower that sees the input, as a module: fixed random features with nothing to train."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_softext.adapters.snnk._common import check_kernel, check_seed, check_size, input_length
from hf_softext.adapters.snnk.kernels import KERNELS
from hf_softext.functional.random_projection import random_projection
from hf_softext.functional.trig_features import cos_weights
from hf_softext.functional.unit_rows import unit_rows
from hf_softext.functional.without_autocast import without_autocast


class RandomFeatures(nn.Module):
    r"""$\phi(x)$ of a kernel, and $\psi(w, b)$, the features of a layer's weights.

    `self(x) @ self.of_weights(w, b).T` is the estimate of a layer f(w·x + b).

    Args:
        in_features: D.
        num_features: R.
        kernel: "relu", "linear", "cos" or "sin".
        bias: whether weights come with a bias. With "relu" and "linear" the input then has a 1
            behind it, and the weights their bias; with "cos" and "sin" a bias is a phase of the
            weights, and the input is as it is.
        orthogonal: whether the rows of the projection are orthogonal, in blocks.
        equal_norms: whether those rows have one length; the kernel "linear" is then exact for R a
            multiple of D, or of D + 1 with a bias.
        floor: of "relu": max(G x, floor).
        normalize: the length that x is scaled to, "unit" for 1, None to leave it.
        seed: of the projection, which is drawn on the CPU and is the same on every device.

    Attributes:
        projection: G, (P, D) or (P, D + 1), a buffer that stays in float32 whatever the module is
            cast to.

    Raises:
        ValueError: a value that is not allowed.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225, from the authors' code. The 1
        behind the input is ours, their code drops the bias of a layer that "relu" replaces.
    """

    projection: Tensor

    def __init__(
        self,
        in_features: int,
        num_features: int,
        kernel: str = "relu",
        *,
        bias: bool = False,
        orthogonal: bool = True,
        equal_norms: bool = False,
        floor: float = 0.0,
        normalize: float | str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        check_size("in_features", in_features)
        check_kernel(kernel, num_features, floor)
        check_seed("seed", seed)
        if equal_norms and not orthogonal:
            raise ValueError("equal_norms=True is for orthogonal=True.")
        parts = KERNELS[kernel].parts
        self.in_features, self.num_features, self.kernel = in_features, num_features, kernel
        self.bias, self.orthogonal, self.equal_norms = bias, orthogonal, equal_norms
        self.floor, self.normalize, self.seed = float(floor), input_length(normalize), seed
        # parts is 1 where the kernel takes the bias as one more input
        self.extended = bias and parts == 1
        generator = torch.Generator("cpu").manual_seed(seed)
        width = in_features + self.extended
        drawn = random_projection(num_features // parts, width, generator, orthogonal, equal_norms)
        self.register_buffer("projection", drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Features of an input.

        Args:
            x: (..., D).

        Returns:
            (..., R), float32, or float64 where x is; autocast does not reach it.

        Raises:
            ValueError: another last dimension.
        """
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"the input has shape {tuple(x.shape)}: its last dimension must be "
                f"in_features={self.in_features}."
            )
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.normalize is not None:
            x = unit_rows(x) * self.normalize
        if self.extended:
            x = F.pad(x, (0, 1), value=1.0)
        with without_autocast(x):
            return KERNELS[self.kernel].features(x, self.projection.to(x.dtype), self.floor)

    def of_weights(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Features of the weights of a layer.

        Args:
            weight: (O, D).
            bias: (O,), where the module was made with `bias=True`; None is 0.

        Returns:
            (O, R), float32, or float64 where the weight is.

        Raises:
            ValueError: another width, or a bias that the module was not made for.
        """
        if weight.dim() != 2 or weight.shape[1] != self.in_features:
            raise ValueError(
                f"the weight has shape {tuple(weight.shape)}: (O, {self.in_features}) is needed."
            )
        if bias is not None and not self.bias:
            raise ValueError("there is a bias, and the features were made with bias=False.")
        dtype = torch.promote_types(weight.dtype, torch.float32)
        w, projection = weight.to(dtype), self.projection.to(dtype)
        shift = torch.zeros_like(w[:, 0]) if bias is None else bias.to(dtype)
        with without_autocast(w):
            if self.extended:
                w = torch.cat((w, shift[:, None]), 1)
            if KERNELS[self.kernel].parts == 1:
                return KERNELS[self.kernel].weights(w, projection, self.floor)
            quarter = math.pi / 2 if self.kernel == "sin" else 0.0
            return cos_weights(w, projection, shift - quarter)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RandomFeatures":
        before = self.projection
        super()._apply(fn, recurse)
        if self.projection.dtype != before.dtype:
            # a rounded projection would be another one
            self.projection = before.to(self.projection.device)
        return self

    def extra_repr(self) -> str:
        """As for a layer of torch."""
        return (
            f"in_features={self.in_features}, num_features={self.num_features}, "
            f"kernel={self.kernel!r}, bias={self.bias}, floor={self.floor}, "
            f"normalize={self.normalize}"
        )
