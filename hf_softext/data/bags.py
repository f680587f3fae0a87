"""Labelled data whose labels are known for bags of samples only."""

import random

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from hf_softext.functional.label_dp import private_bag_means
from hf_softext.functional.simplex import nearest_on_simplex


def make_bags(
    dataset: Dataset,
    bag_size: int,
    seed: int,
    *,
    label_column: str | None = None,
    classes: int | None = None,
    epsilon: float | None = None,
    bound: float | None = None,
) -> Dataset:
    r"""Put the samples of a labelled dataset into random bags, and forget their own labels.

    Args:
        dataset: with a label for each sample: a number, or an integer for a class.
        bag_size: at most so many samples in a bag, at least 1; sizes differ by 1 at most.
        seed: of which samples share a bag, and of the noise. Where the result is published it must
            be one that nobody can guess.
        label_column: by default "labels", or else "label".
        classes: how many, for integers; by default those that the column knows, or, without
            `epsilon`, the largest label and one.
        epsilon: $\epsilon$ of differential privacy for the label of each sample, features and
            bags being public; by default there is no noise. Calling this again for the same
            samples adds its epsilon.
        bound: B of `private_bag_means`, for a regression with `epsilon`: chosen without looking at
            the labels.

    Returns:
        The samples, bag by bag, with `bag_id` (integers from 0) and `labels`: the mean of the bag,
        or, for classes, the share of each in it. The label column is gone.

    Raises:
        ValueError: a value out of its range, no such column, labels that are neither numbers nor
            integers from 0, `epsilon` without `bound` or without a known number of classes.

    Notes:
        A class that changes moves two shares by 1/k each, so that each share is released with
        $\epsilon/2$. Noisy shares are then projected onto those that are at least 0 and of sum 1,
        which reveals nothing more.

    Reference:
        A. Javanmard, L. Chen, V. Mirrokni, A. Badanidiyuru, G. Fu, "Learning from Aggregate
        responses: Instance Level versus Bag Level Loss Functions", 2024, arXiv 2401.11081. Random
        bags are the paper's; the release of shares is derived here.
    """
    if bag_size < 1 or bag_size != int(bag_size):
        raise ValueError(f"bag_size={bag_size!r} must be at least 1, and whole.")
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon={epsilon!r} must be above 0, or None for no noise.")
    if len(dataset) == 0:
        raise ValueError("dataset has no samples.")
    column = _column(dataset, label_column)
    labels = torch.as_tensor(list(dataset[column]))
    if labels.dim() != 1:
        raise ValueError(f"column {column!r} must have a number for each sample.")
    regression = labels.is_floating_point()
    if (bound is not None) != (epsilon is not None and regression):
        raise ValueError(
            f"bound={bound!r}, epsilon={epsilon!r}: a regression needs both for a private release, "
            "and neither otherwise; classes need no bound."
        )
    draw = torch.Generator().manual_seed(random.Random(f"bags {seed}").getrandbits(63))
    order = torch.randperm(len(labels), generator=draw)
    parts = order.tensor_split(-(-len(labels) // bag_size))
    bag_id = torch.cat([torch.full((len(part),), index) for index, part in enumerate(parts)])
    if regression:
        means = _means(labels[order].double(), bag_id, epsilon, bound or 0.0, draw)
    else:
        known_to_it = getattr(dataset.features[column], "num_classes", None)
        if epsilon is not None and not (classes or known_to_it):
            raise ValueError(
                "classes is missing: give classes=, their number, which a private release "
                "(epsilon) must not look up."
            )
        known = _one_hot(column, labels, classes or known_to_it or int(labels.max()) + 1)[order]
        half = None if epsilon is None else epsilon / 2
        # around 0, where the sensitivity of a mean of zeros and ones is 1/k
        each = [_means(one - 0.5, bag_id, half, 0.5, draw) + 0.5 for one in known.unbind(1)]
        means = torch.stack(each, 1)
        means = means if epsilon is None else nearest_on_simplex(means)
    bags = dataset.select(order.tolist()).add_column("bag_id", bag_id.tolist())
    return bags.remove_columns([column]).add_column("labels", means.tolist())


def _column(dataset: Dataset, name: str | None) -> str:
    wanted = [name] if name is not None else ["labels", "label"]
    for one in wanted:
        if one in dataset.column_names:
            return one
    raise ValueError(
        f"label_column={name!r}: the dataset has {', '.join(dataset.column_names)}, and none of "
        f"{', '.join(wanted)}."
    )


def _one_hot(column: str, labels: Tensor, classes: int) -> Tensor:
    """(N, C), float64."""
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"column {column!r} has classes from {int(labels.min())} to {int(labels.max())}, not "
            f"from 0 to {classes - 1}."
        )
    return F.one_hot(labels.long(), classes).double()


def _means(
    responses: Tensor, bag_id: Tensor, epsilon: float | None, bound: float, draw: torch.Generator
) -> Tensor:
    """(N,): for each row the mean of its bag, with noise where there is an epsilon."""
    if epsilon is not None:
        return private_bag_means(responses, bag_id, epsilon=epsilon, bound=bound, generator=draw)
    size = bag_id.bincount()
    return (responses.new_zeros(len(size)).index_add(0, bag_id, responses) / size)[bag_id]
