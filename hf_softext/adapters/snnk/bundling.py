"""A stack of layers as one fixed feature pipeline and one trained matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_softext.adapters.snnk._common import check_seed, check_size, computes_as
from hf_softext.adapters.snnk.random_features import RandomFeatures


class Cos(nn.Module):
    """The cosine as an activation, for `bundle_sequential` to find."""

    def forward(self, x: Tensor) -> Tensor:
        """cos(x)."""
        return x.cos()


class Sin(nn.Module):
    """The sine as an activation, for `bundle_sequential` to find."""

    def forward(self, x: Tensor) -> Tensor:
        """sin(x)."""
        return x.sin()


_KERNELS: dict[type[nn.Module], str] = {nn.ReLU: "relu", Cos: "cos", Sin: "sin"}


class BundledModule(nn.Module):
    r"""$y = \mathrm{rest}(\bar W z_n + b)$ with $z_0 = x$, $z_k = \Phi_k(z_{k-1})$.

    Args:
        features: the Φ_k, which have nothing to train.
        readout: $\bar W$, (O, R_n), and b.
        rest: what was not bundled; `nn.Identity()` for nothing.

    Raises:
        ValueError: widths that do not follow on each other.

    Notes:
        Without a rest the output is linear in what is trained, so that for squared error
        `fit_closed_form` finds the optimum in one pass.
    """

    def __init__(
        self,
        features: Sequence[RandomFeatures],
        readout: nn.Linear,
        rest: nn.Module | None = None,
    ):
        super().__init__()
        made = [part.num_features for part in features]
        needed = [*[part.in_features for part in features][1:], readout.in_features]
        if not made or made != needed:
            raise ValueError(
                f"features put out widths {made}, and what follows takes {needed}: each must take "
                "what the one before it puts out."
            )
        self.features = nn.ModuleList(features)
        self.readout = readout
        self.rest = nn.Identity() if rest is None else rest

    def forward(self, x: Tensor) -> Tensor:
        """The output for x, (..., D); of the dtype of the readout."""
        for features in self.features:
            x = features(x)
        return self.rest(self.readout(x.to(self.readout.weight.dtype)))


@dataclass(frozen=True)
class _Layer:
    """A linear layer and the kernel of the activation behind it."""

    linear: nn.Linear
    kernel: str


@torch.no_grad()
def bundle_sequential(
    sequential: nn.Sequential,
    num_features: int | Sequence[int],
    *,
    layers: int | None = None,
    orthogonal: bool = True,
    equal_norms: bool = False,
    seed: int = 0,
) -> BundledModule:
    r"""Collapse linear layers and activations into a `BundledModule`.

    With $V_k = \Psi_k(\tilde W_k, b_k)$ and $\tilde W_k = W_k V_{k-1}$ the weight of a layer times
    the readout of the one before, the network $W_{n+1} f(W_n \dots f(W_1 x + b_1) \dots) + b_{n+1}$
    becomes $(W_{n+1} V_n) z_n + b_{n+1}$: O R_n numbers instead of all weights.

    Args:
        sequential: linear layers with `nn.ReLU` (kernel "relu"), `Cos`, `Sin` or no activation
            (kernel "linear") between them. `nn.Identity` is skipped, and so is `nn.Dropout`, as
            nothing that is trained is left where it was.
        num_features: R_k of each bundled layer, or one number for all.
        layers: n, how many are bundled; None: all but the last linear one. What comes after the
            linear layer n + 1, or after V_n where another module is next, stays as it is, as the
            module's `rest`.
        orthogonal: as in `RandomFeatures`, True.
        equal_norms: as in `RandomFeatures`, False.
        seed: of the projections, 0.

    Returns:
        The new module, with the dtype, device and mode of the old one, of which it shares no
        parameter except those in `rest`.

    Raises:
        TypeError: no nn.Sequential, or a module in it that has no kernel.
        ValueError: widths that do not fit, too few layers, or another number of `num_features`
            than of layers.

    Notes:
        With "linear", equal norms and R_k a multiple of the width (one more with a bias) nothing
        changes. With "cos" and "sin" the output is an estimate of the old one, whose error falls as
        $1/\sqrt{R}$ and grows exponentially with the squared lengths of inputs and weights. With
        "relu" the new module computes **another function**, of the composed arc-cosine kernels:
        train its readout, or fit it in closed form.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225, figure 1 and abstract. The
        formulas are derived from these: the section itself was not available, and the authors'
        code bundles one layer only.
    """
    stack, last, rest = _parse(sequential, layers)
    sizes = [num_features] * len(stack) if isinstance(num_features, int) else [*num_features]
    if len(sizes) != len(stack):
        raise ValueError(f"num_features has {len(sizes)} numbers for {len(stack)} bundled layers.")
    check_seed("seed", seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    seeds = torch.randint(2**62, (len(stack),), generator=generator, device="cpu").tolist()
    first = stack[0].linear
    device, dtype = first.weight.device, first.weight.dtype
    width, readout = first.in_features, None
    features = []
    for layer, size, drawn in zip(stack, sizes, seeds, strict=True):
        made = RandomFeatures(
            width,
            size,
            layer.kernel,
            bias=layer.linear.bias is not None,
            orthogonal=orthogonal,
            equal_norms=equal_norms,
            seed=drawn,
        ).to(device)
        weight = _times(layer.linear.weight, readout)
        readout = made.of_weights(weight, layer.linear.bias)
        features.append(made)
        width = size
    bias = None if last is None else last.bias
    weight = readout if last is None else _times(last.weight, readout)
    assert weight is not None
    final = nn.Linear(width, len(weight), bias is not None, device=device, dtype=dtype)
    final.weight.copy_(weight)
    if bias is not None:
        final.bias.copy_(bias)
    return BundledModule(features, final, rest).train(sequential.training)


def _times(weight: Tensor, readout: Tensor | None) -> Tensor:
    return weight if readout is None else weight.to(readout.dtype) @ readout


def _parse(
    sequential: nn.Sequential, layers: int | None
) -> tuple[list[_Layer], nn.Linear | None, nn.Module | None]:
    """The layers to bundle, the linear one behind them, and the rest."""
    if not computes_as(sequential, nn.Sequential):
        raise TypeError(f"sequential is a {type(sequential).__name__}, not a torch.nn.Sequential.")
    if layers is not None:
        check_size("layers", layers)
    stack: list[_Layer] = []
    # a linear layer whose activation has not been seen
    open_layer: nn.Linear | None = None
    modules = list(sequential)
    for place, module in enumerate(modules):
        if computes_as(module, nn.Linear):
            if open_layer is not None:
                stack.append(_Layer(open_layer, "linear"))
            before = open_layer or (stack[-1].linear if stack else None)
            if before is not None and before.out_features != module.in_features:
                raise ValueError(
                    f"module {place} takes {module.in_features} features, and the linear layer "
                    f"before it puts out {before.out_features}."
                )
            if len(stack) == layers:
                left = modules[place + 1 :]
                return stack, module, nn.Sequential(*left) if left else None
            open_layer = module
        elif type(module) in _KERNELS and open_layer is not None:
            stack.append(_Layer(open_layer, _KERNELS[type(module)]))
            open_layer = None
        elif isinstance(module, nn.Identity | nn.Dropout):
            continue
        elif len(stack) == layers and open_layer is None:
            return stack, None, nn.Sequential(*modules[place:])
        else:
            raise TypeError(
                f"module {place} is a {type(module).__name__}"
                + (" without a linear layer before it" if type(module) in _KERNELS else "")
                + ", which has no kernel: only linear layers with "
                f"{', '.join(kind.__name__ for kind in _KERNELS)} or nothing between them can be "
                "bundled. Give `layers=` to stop before it."
            )
    if not stack or (layers or 0) > len(stack):
        raise ValueError(
            f"there are {len(stack)} linear layers with something behind them, and "
            f"layers={layers!r}: at least one is needed, and layers of them."
        )
    return stack, open_layer, None
