"""Perpendicular gradients in front of any optimizer's step."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hf_softext.functional.perp_grad import GRANULARITIES, project_out


def perp_grad(
    optimizer: Optimizer,
    *,
    renorm: bool = True,
    granularity: str = "tensor",
    min_residual: float = 1e-6,
    eps: float = 1e-30,
    exclude: Callable[[Tensor], bool] | None = None,
) -> RemovableHandle:
    r"""From now on each step of `optimizer` sees gradients perpendicular to their weights.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        perp_grad(optimizer)

    After the training set is fitted, the cheapest way to lower the loss is to make the weights
    longer: predictions stay, logits grow, and softmax runs out of precision. This takes that way
    out of every gradient; see `project_out` for the formula.

    The optimizer stays what it is: its class, `state_dict`, schedulers, clipping before the step,
    resuming and `accelerate` know nothing of it. It is a step pre-hook, which torch does not save:
    call this again where the optimizer is built again.

    Args:
        optimizer: any optimizer of torch, or one that `accelerate` has wrapped. Parameters and
            groups that are added later are covered too.
        renorm: keep the length of each gradient; see `project_out`.
        granularity: "tensor" or "row"; see `project_out`.
        min_residual: at which share of a gradient the remainder counts as rounding; see
            `project_out`.
        eps: see `project_out`.
        exclude: says of a parameter whether its gradient stays as it is. An optimizer knows no
            names; with a model at hand, `names = {p: n for n, p in model.named_parameters()}` and
            `exclude=lambda p: "norm" in names[p]`.

    Returns:
        A handle; `handle.remove()` ends it.

    Raises:
        TypeError: `optimizer` is no optimizer of torch (DeepSpeed's are not), or a parameter is
            complex.
        ValueError: this optimizer has it already or is `differentiable`, `granularity` or a number
            is wrong, or a parameter is one flat shard of several (FSDP version 1, ZeRO stage 3):
            its dot product would need the other shards. In a step: a sparse gradient.

    Notes:
        Decoupled weight decay still shrinks the weights, and momentum still holds gradients that
        were perpendicular to older weights: a step is only nearly perpendicular. Under "tensor", a
        token that is not in the batch gets a gradient from the projection of its embedding matrix;
        exclude that matrix or use "row".

        `step(closure)`: the gradients that the closure leaves are projected, each time it is
        called. The line search of LBFGS wants the gradient of its function, and these are not it.

        DTensor parameters (FSDP version 2) are summed over their shards by their own operations.
        A plain tensor that is one shard of several without saying so cannot be recognised.

    Reference:
        L. Prieto, M. Barsbey, P. A. M. Mediano, T. Birdal, "Grokking at the Edge of Numerical
        Stability", 2025, arXiv 2501.04697.
    """
    inner = _innermost(optimizer)
    if any(isinstance(hook, _Projection) for hook in inner._optimizer_step_pre_hooks.values()):
        raise ValueError(
            f"optimizer={type(inner).__name__} has perp_grad already: remove() its first handle."
        )
    if any(group.get("differentiable") for group in inner.param_groups):
        raise ValueError(
            f"optimizer={type(inner).__name__} has differentiable=True, and the projection writes "
            f"over gradients without autograd: build it without, or call project_out yourself."
        )
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r} must be one of {', '.join(GRANULARITIES)}.")
    if not 0 <= min_residual < 1:
        raise ValueError(f"min_residual={min_residual!r} must be at least 0 and below 1.")
    if not eps >= 0:
        raise ValueError(f"eps={eps!r} must be at least 0.")
    options = {"renorm": renorm, "granularity": granularity}
    projection = _Projection(exclude, **options, min_residual=min_residual, eps=eps)
    for parameter in projection.parameters(inner):
        _check(parameter)
    return inner.register_step_pre_hook(projection)


class _Projection:
    def __init__(self, exclude: Callable[[Tensor], bool] | None, **options: Any):
        self.exclude, self.options = exclude, options

    def __call__(self, optimizer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The pre-hook: `args` are those of `step`, itself included."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self.project(optimizer)
            return None

        def projected() -> Any:
            loss = closure()
            self.project(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], projected, *args[2:]), kwargs
        return args, {**kwargs, "closure": projected}

    @torch.no_grad()
    def project(self, optimizer: Optimizer) -> None:
        for parameter in self.parameters(optimizer):
            _check(parameter)
            gradient = parameter.grad
            if gradient is not None:
                projected = project_out(gradient, parameter, **self.options)
                if _overlaps(gradient):
                    parameter.grad = projected
                else:
                    gradient.copy_(projected)

    def parameters(self, optimizer: Optimizer) -> Iterator[Tensor]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if self.exclude is None or not self.exclude(parameter):
                    yield parameter


def _innermost(optimizer: Any) -> Any:
    # a wrapper such as accelerate's runs no hooks of its own
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"optimizer={type(optimizer).__name__} runs no step hooks of torch: pass a "
            f"torch.optim.Optimizer, or train without the engine that replaced it."
        )
    return inner


def _overlaps(gradient: Tensor) -> bool:
    # expanded, as torch sees it: several entries in one place, which cannot be written to
    return any(s == 0 and n > 1 for n, s in zip(gradient.shape, gradient.stride(), strict=True))


def _check(parameter: Tensor) -> None:
    shape = tuple(parameter.shape)
    if parameter.is_complex():
        raise TypeError(f"perp_grad: the parameter of shape {shape} is complex: exclude it.")
    # marks that FSDP version 1 and DeepSpeed ZeRO stage 3 leave
    if getattr(parameter, "_fsdp_flattened", False) or hasattr(parameter, "ds_id"):
        raise ValueError(
            f"perp_grad: the parameter of shape {shape} is a flat shard of several tensors or of "
            f"a part of one: use FSDP version 2, whose parameters keep their shape."
        )
    if parameter.grad is not None and parameter.grad.layout != torch.strided:
        raise ValueError(
            f"perp_grad: the gradient of the parameter of shape {shape} is sparse: build its "
            f"layer with sparse=False, or exclude the parameter."
        )
