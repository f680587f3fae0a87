"""Fit the output layer of a model to squared error in one pass over the data."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device
from torch import nn
from tqdm.auto import tqdm

from hf_softext.adapters.snnk.feature_pass import FeaturePass
from hf_softext.adapters.snnk.shares import rows_that_count, share
from hf_softext.functional.ridge import NormalEquations, check_ridge


@dataclass(frozen=True)
class ClosedFormFit:
    """What a fit found.

    Attributes:
        rows: how many were fitted to, over all processes.
        mean_squared_error: of them, mean over rows and outputs.
    """

    rows: int
    mean_squared_error: float


def fit_closed_form(
    model: nn.Module,
    dataloader: Iterable[Any],
    ridge: float = 1e-3,
    *,
    relative: bool = True,
    head: nn.Linear | None = None,
    labels: str = "labels",
    progress: bool = True,
) -> ClosedFormFit:
    r"""Set the output layer of a model to the ridge regression on its inputs.

    One pass, no gradients: $W, b = \arg\min \sum_n \lVert W z_n + b - y_n\rVert^2 + \lambda \lVert
    W\rVert^2$ for the inputs $z_n$ of the layer and one-hot labels, or the targets of a regression.
    The rest of the model is as it was.

        model.classifier = SnnkHead(384, 150)
        fit_closed_form(model, DataLoader(...))

    Args:
        model: any whose logits are what a `torch.nn.Linear` puts out: a model of transformers, with
            its own head or an `SnnkHead`, a `BundledModule`, an `nn.Sequential`.
        dataloader: batches that are mappings with labels, passed on to the model without them, or
            pairs of an input and labels. Under `accelerate launch` or `torchrun` each process takes
            its share, of a plain loader or of one that `accelerator.prepare` made; rows that were
            repeated to fill up the last batch do not count.
        ridge: $\lambda$, 1e-3; the paper has none.
        relative: $\lambda$ is ridge times the mean variance of a feature, summed over rows, so that
            the same value fits any number of rows; True.
        head: the layer; None: the last linear one that is called.
        labels: their name in a batch. Whole numbers (...,) are classes, of which -100 does not
            count; floats (...,) or (..., C) are targets.
        progress: whether to show a bar.

    Returns:
        How many rows there were, and how well they are fitted.

    Raises:
        TypeError: batches of another kind.
        ValueError: no batches, no labels or a single class; a label that is no class; NaN or
            infinity; widths that do not fit; a model whose logits are not those of a linear layer,
            such as one that picks a position after it, or of one whose weight is that of an
            embedding; or batches with the labels of a causal language model, which are shifted
            only by its loss.

    Notes:
        The largest output is the predicted class, as after any training, but outputs estimate
        probabilities themselves: their softmax is far too flat, and its loss means nothing.

        The sums are taken in float64, whatever the model computes in, and are the same up to
        rounding for any order and any number of processes. They need (R + 1)² numbers.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225: the abstract claims closed forms
        for several losses, of which squared error is the one it names; the authors' code has none.
    """
    sums, layer = collect(
        model, dataloader, head=head, labels=labels, progress=progress, ridge=ridge
    )
    return install(layer, sums, ridge, relative)


def collect(
    model: nn.Module,
    dataloader: Iterable[Any],
    *,
    head: nn.Linear | None = None,
    labels: str = "labels",
    progress: bool = True,
    ridge: float = 0.0,
    resumed: tuple[str, int, dict[str, Any]] | None = None,
    keep: Callable[[int, FeaturePass], None] | None = None,
) -> tuple[NormalEquations, nn.Linear]:
    """The pass of `fit_closed_form` without its end, from which any number of ridges is solved.

    Args:
        model: as there.
        dataloader: as there.
        head: as there.
        labels: as there.
        progress: as there.
        ridge: is checked before anything is computed.
        resumed: name of the layer, number of batches and tensors of a pass that was broken off; the
            model does not run on these batches again. Each process has its own.
        keep: is called after each batch with the number of batches and the pass so far, of this
            process.

    Returns:
        The sums over all processes, on each of them, and the layer.

    Raises:
        TypeError: as there.
        ValueError: as there.
    """
    check_ridge(ridge)
    state = PartialState()
    loader = share(dataloader, state)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    run = FeaturePass(model, head, labels)
    skip = 0
    if resumed is not None:
        name, skip, tensors = resumed
        run.start(name, device, tensors)
    problem: TypeError | ValueError | None = None
    total: Any = len(loader) if hasattr(loader, "__len__") else None  # type: ignore[arg-type]
    silent = not progress or not state.is_main_process
    with (
        evaluating(model),
        torch.no_grad(),
        run.watching(),
        tqdm(total=total, desc="closed form", unit="batch", disable=silent) as bar,
    ):
        for number, batch in enumerate(loader, 1):
            if number > skip:
                try:
                    run.take(send_to_device(batch, device), partial(rows_that_count, loader, state))
                except (TypeError, ValueError) as error:
                    # the other processes are told before it is raised, as they would wait
                    problem = error
                    break
                if keep is not None:
                    keep(number, run)
            bar.update()
    if state.num_processes > 1:
        told = gather_object([None if problem is None else str(problem)])
        for process, text in enumerate(told):
            if problem is None and text is not None:
                raise ValueError(f"process {process}: {text}")
    if problem is not None:
        raise problem
    return run.finish(state, device), run.layer


def install(
    layer: nn.Linear, sums: NormalEquations, ridge: float = 1e-3, relative: bool = True
) -> ClosedFormFit:
    """Solve for a layer and write the solution into it.

    Args:
        layer: whose inputs the sums are of.
        sums: over all processes.
        ridge: as in `fit_closed_form`.
        relative: as in `fit_closed_form`.

    Returns:
        What was found.
    """
    weight, bias = sums.solve(ridge, relative, layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    return ClosedFormFit(sums.rows, sums.mean_squared_error(weight, bias))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each module is in its old one afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
