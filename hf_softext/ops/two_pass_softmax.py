"""Softmax and log-sum-exp of long float32 rows on the CPU, with fewer passes over memory."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from hf_softext.functional.reverse_only import reverse_only
from hf_softext.ops.build import load


def two_pass_softmax(x: Tensor, dim: int = -1) -> Tensor:
    r"""Softmax that reads its input twice and writes once, with no pass for the maximum.

    $$y_i = \frac{m_i}{M}\,2^{n_i - E}, \qquad e^{x_i} = m_i 2^{n_i}, \qquad M\,2^E = \sum_j m_j
    2^{n_j}$$

    with integers $n$ and $m$ in about $[0.7, 1.4]$, so that nothing overflows. Equal to
    `torch.softmax` to float32 rounding; worth it where a row is long and memory sets the pace.
    `benchmarks/two_pass_softmax.py` measures where that is.

    Args:
        x: any shape, float32, on the CPU. If `dim` is not the last dimension, or `x` not
            contiguous, a contiguous copy is made first, which costs more than the passes save.
        dim: the dimension that sums to 1.

    Returns:
        Same shape and dtype. Differentiable in reverse mode, any number of times.

    Raises:
        TypeError: `x` is not float32.
        ValueError: `x` is not on the CPU.
        NotImplementedError: forward-mode differentiation.
        ImportError: first call on a machine that has no C++ compiler.
        RuntimeError: the first call could not compile or save.

    Notes:
        -inf has probability 0; a row of nothing but -inf, or with a +inf or NaN in it, is NaN, as
        in torch. A row whose maximum is beyond +-2048 takes a third pass, for its maximum. The
        result does not depend on the number of threads, which is torch's (before torch 2.10: one).
        The first call on a machine compiles for a second or two; the result is kept in
        `$SOFTEXT_CACHE`, or in `~/.cache/hf_softext`.

    Reference:
        M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", 2020, arXiv 2001.04438; the
        polynomial is that of the authors' kernels in XNNPACK.
    """
    _check(x, "torch.softmax")
    return _softmax(x.movedim(dim, -1)).movedim(-1, dim) if x.ndim else _softmax(x[None])[0]


def two_pass_logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    r"""Log-sum-exp that reads its input once: the first pass of `two_pass_softmax`.

    $$\log\sum_i e^{x_i} = \log M + E \log 2$$

    Args:
        x: as in `two_pass_softmax`.
        dim: the dimension that is reduced.

    Returns:
        The shape of `x` without `dim`, float32. Differentiable in reverse mode, any number of
        times: the gradient is the softmax. Infinities and NaN as in `torch.logsumexp`.

    Raises:
        TypeError, ValueError, ImportError, RuntimeError: as in `two_pass_softmax`.

    Reference:
        M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", 2020, arXiv 2001.04438.
    """
    _check(x, "torch.logsumexp")
    return _logsumexp(x.movedim(dim, -1) if x.ndim else x[None])


def _check(x: Tensor, instead: str) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"x is {x.dtype}, two-pass needs float32: use {instead}, or x.float().")
    if x.device.type not in ("cpu", "meta"):
        raise ValueError(f"x is on {x.device}, two-pass runs on the CPU: use {instead}.")
    reverse_only("two-pass", instead, x)


# rather than `torch.library.custom_op`: a call of it takes some 2 microseconds longer
torch.library.define("softext::two_pass_softmax", "(Tensor x) -> Tensor")
torch.library.define("softext::two_pass_logsumexp", "(Tensor x) -> Tensor")


@torch.library.impl("softext::two_pass_softmax", "cpu")
def _(x: Tensor) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    run(x, y, None)
    return y


@torch.library.impl("softext::two_pass_logsumexp", "cpu")
def _(x: Tensor) -> Tensor:
    result = x.new_empty(x.shape[:-1])
    run(x, None, result)
    return result


def run(x: Tensor, y: Tensor | None, logsumexp: Tensor | None) -> None:
    """Fill `y` (contiguous, the shape of `x`) and `logsumexp` (that without the last dimension)."""
    x = x.contiguous()
    columns = x.shape[-1]
    rows = logsumexp.numel() if logsumexp is not None else x.numel() // max(columns, 1)
    outputs = (None if t is None else t.data_ptr() for t in (y, logsumexp))
    kernel, parallel = _kernel()
    kernel(x.data_ptr(), *outputs, rows, columns, torch.get_num_threads(), parallel)


@functools.cache
def _kernel():
    """The C function, and torch's own threads for it."""
    kernel = load(Path(__file__).with_suffix(".cpp")).softext_two_pass
    kernel.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    kernel.restype = None
    # torch's stable C interface has this since 2.10; without it the kernel runs on one thread
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "torch_parallel_for", None)
    return kernel, ctypes.cast(parallel, ctypes.c_void_p) if parallel else None


@torch.library.register_fake("softext::two_pass_softmax")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("softext::two_pass_logsumexp")
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1])


def _keep_output(ctx, inputs, output) -> None:
    ctx.save_for_backward(output)


def _softmax_backward(ctx, grad: Tensor) -> Tensor:
    (y,) = ctx.saved_tensors
    return torch.ops.aten._softmax_backward_data(grad, y, -1, y.dtype)


def _keep_input(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _logsumexp_backward(ctx, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad.unsqueeze(-1) * _softmax(x)


torch.library.register_autograd(
    "softext::two_pass_softmax", _softmax_backward, setup_context=_keep_output
)
torch.library.register_autograd(
    "softext::two_pass_logsumexp", _logsumexp_backward, setup_context=_keep_input
)

_softmax = torch.ops.softext.two_pass_softmax.default
_logsumexp = torch.ops.softext.two_pass_logsumexp.default
