"""Empirical distribution functions, one a class, kept as one sorted list."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class ClassLists(NamedTuple):
    """Sorted values of every class, one behind the other.

    Attributes:
        values: (N,), ascending within each class.
        offsets: (C + 1,), int64: class c has values[offsets[c] : offsets[c + 1]].
    """

    values: Tensor
    offsets: Tensor

    @property
    def sizes(self) -> Tensor:
        """(C,), how many values each class has."""
        return self.offsets.diff()


def class_lists(values: Tensor, classes: Tensor, num_classes: int) -> ClassLists:
    """Sort values by class, then by value.

    Args:
        values: (N,), floating point, no NaN.
        classes: (N,), int64; rows whose class is not from 0 to C - 1 are left out.
        num_classes: C.
    """
    known = (classes >= 0) & (classes < num_classes)
    values, classes = values[known], classes[known]
    by_value = values.sort(stable=True)
    by_class = classes[by_value.indices].sort(stable=True)
    counts = torch.bincount(classes, minlength=num_classes)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return ClassLists(by_value.values[by_class.indices], offsets)


def count_below(lists: ClassLists, values: Tensor) -> Tensor:
    """How many values of each class are strictly below.

    Args:
        lists: of C classes.
        values: (B,), compared with every class, or (B, C), each column with its class.

    Returns:
        (B, C), int64.
    """
    bounds = lists.offsets.tolist()
    columns = values if values.dim() == 2 else values.unsqueeze(-1).expand(-1, len(bounds) - 1)
    found = torch.empty(columns.shape, dtype=torch.int64, device=values.device)
    for index, (start, end) in enumerate(pairwise(bounds)):
        column = columns[:, index].contiguous()
        found[:, index] = torch.searchsorted(lists.values[start:end].contiguous(), column)
    return found


def fraction_below(lists: ClassLists, values: Tensor) -> Tensor:
    """`count_below` as a fraction of the class, (B, C), float32; 1 for a class without values."""
    sizes = lists.sizes
    fraction = count_below(lists, values) / sizes.clamp(min=1)
    return fraction.masked_fill(sizes == 0, 1.0)
