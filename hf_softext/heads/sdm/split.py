"""Dividing rows into support and calibration."""

import hashlib

import torch
from torch import Tensor


def distinct_rows(features: Tensor, labels: Tensor) -> tuple[Tensor, int, int]:
    """Rows that differ: a row on both sides of a split would vouch for itself.

    Args:
        features: (N, D).
        labels: (N,), int64.

    Returns:
        (M,), int64, the first of every set of equal rows, in order; how many were left out; how
        many of those had another label than the one that is kept.
    """
    seen: dict[bytes, int] = {}
    kept: list[int] = []
    other = 0
    listed = labels.tolist()
    for row, values in enumerate((features.float().cpu() + 0.0).contiguous()):
        # adding 0 makes -0 and 0 one
        key = hashlib.blake2b(values.numpy().tobytes(), digest_size=16).digest()
        if key in seen:
            other += listed[seen[key]] != listed[row]
        else:
            seen[key] = row
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64), len(listed) - len(kept), other


def halves(
    labels: Tensor, num_labels: int, stratify: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Divide rows into two halves at random.

    Args:
        labels: (N,), int64, on the CPU.
        num_labels: C.
        stratify: divide every class, so that both halves have its share; where a class is odd, the
            odd row goes where the halves are then closest.
        generator: of the order.

    Returns:
        Rows of the support, the smaller half, and of calibration, in random order.

    Raises:
        ValueError: a class is missing in one of them.
    """
    order = torch.randperm(len(labels), generator=generator)
    if stratify:
        first, second = [], []
        for label in range(num_labels):
            members = order[labels[order] == label]
            ahead = sum(map(len, first)) < sum(map(len, second))
            half = (len(members) + int(ahead)) // 2
            first.append(members[:half])
            second.append(members[half:])
        # members of a class stand together: mix them
        support, calibration = (
            part[torch.randperm(len(part), generator=generator)]
            for part in (torch.cat(first), torch.cat(second))
        )
    else:
        support, calibration = order[: len(order) // 2], order[len(order) // 2 :]
    for name, part in (("support", support), ("calibration", calibration)):
        missing = sorted(set(range(num_labels)) - set(labels[part].tolist()))
        if missing:
            raise ValueError(
                f"the {name} half has no row of classes {', '.join(map(str, missing[:5]))}: give "
                "more rows of them, or set stratify=True."
            )
    return support, calibration
