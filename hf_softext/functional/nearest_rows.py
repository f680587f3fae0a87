"""Exact nearest rows by squared Euclidean distance, in blocks that fit in a given memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# of a block of distances; larger ones are no faster
MAX_BYTES = 64 * 2**20
# rows from whose middle distances are expanded
_SAMPLED = 1024


def leading_matches(
    queries: Tensor,
    query_classes: Tensor,
    rows: Tensor,
    row_classes: Tensor,
    *,
    exclude: Tensor | None = None,
    limit: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """How many of the nearest rows, from the nearest on, are of the query's class without a break.

    Sorting is not needed for that. The run ends at the nearest row of another class, so its length
    is the number of rows of the own class that come before it: one minimum and one count.

    Args:
        queries: (B, M), float32, finite.
        query_classes: (B,), int64.
        rows: (N, M), float32, finite.
        row_classes: (N,), int64; a row of a class that no query has ends every run.
        exclude: (B,), int64, the row that each query is itself, which is not its neighbour; -1 for
            none.
        limit: the longest run that is told, >= 0; None: N.
        max_bytes: of memory for distances, at least for one query.

    Returns:
        matches: (B,), int64, from 0 to `limit`.
        nearest: (B,), int64, the nearest row, of several one of the own class; -1 where there is
            none.
        distance: (B,), float32, its squared distance; inf where there is none.

    Notes:
        Rows at one distance come in their order. Distances are expanded into products, around a
        point in the middle of the rows so that little is lost by it; that of the nearest row is
        then computed directly, and is exactly 0 for a duplicate. Which of two rows is nearer may be
        wrong where they differ by rounding alone.
    """
    count, device = len(rows), queries.device
    # columns of a class stand together, so that a class is a slice and no mask is needed
    classes, order = row_classes.sort(stable=True)
    matches = torch.zeros(len(queries), dtype=torch.int64, device=device)
    nearest = torch.full_like(matches, -1)
    if count == 0 or len(queries) == 0:
        return matches, nearest, torch.full(matches.shape, torch.inf, device=device)
    centre = _middle(rows)
    columns = (rows - centre)[order]
    norms = columns.square().sum(1)
    place = torch.empty_like(order)
    place[order] = torch.arange(count, device=device)
    own, members = torch.unique(query_classes, return_inverse=True)
    starts = torch.searchsorted(classes, own).tolist()
    ends = torch.searchsorted(classes, own, right=True).tolist()
    size = max(1, max_bytes // (4 * count))
    with _full_precision(queries.device):
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            for part in (members == index).nonzero().squeeze(1).split(size):
                # less the query's own norm, which changes no order
                block = torch.addmm(norms, queries[part] - centre, columns.T, alpha=-2)
                if exclude is not None:
                    _cross_out(block, exclude[part], place)
                found = _run(block, start, end, order)
                matches[part], nearest[part] = found
    if limit is not None:
        matches.clamp_(max=limit)
    return matches, nearest, _distance(queries, rows, nearest)


def nearest_rows(
    queries: Tensor, rows: Tensor, count: int, *, max_bytes: int = MAX_BYTES
) -> tuple[Tensor, Tensor]:
    """The nearest rows, nearest first.

    Args:
        queries: (B, M), float32, finite.
        rows: (N, M), float32, finite.
        count: how many for each query; N where there are fewer.
        max_bytes: as in `leading_matches`.

    Returns:
        (B, K), int64, the rows; and (B, K), float32, their squared distances, computed directly.
    """
    count = min(count, len(rows))
    found = torch.empty((len(queries), count), dtype=torch.int64, device=queries.device)
    distances = torch.empty(found.shape, device=queries.device)
    if found.numel() == 0:
        return found, distances
    centre = _middle(rows)
    columns = rows - centre
    norms = columns.square().sum(1)
    size = max(1, max_bytes // (4 * max(len(rows), count * rows.shape[1])))
    with _full_precision(queries.device):
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            block = torch.addmm(norms, part - centre, columns.T, alpha=-2)
            chosen = block.topk(count, dim=1, largest=False).indices.sort(1).values
            direct = (part.unsqueeze(1) - rows[chosen]).square().sum(-1)
            # sorted again: by the exact distances, and by the order of the rows where they are one
            direct, position = direct.sort(dim=1, stable=True)
            found[start : start + size] = chosen.gather(1, position)
            distances[start : start + size] = direct
    return found, distances


def _middle(rows: Tensor) -> Tensor:
    """The median of some of the rows by coordinate: whole numbers stay whole, and exact."""
    sample = rows[:: max(1, len(rows) // _SAMPLED)].sort(0).values
    return sample[len(sample) // 2]


def _cross_out(block: Tensor, exclude: Tensor, place: Tensor) -> None:
    member = (exclude >= 0).nonzero().squeeze(1)
    block[member, place[exclude[member]]] = torch.inf


def _run(block: Tensor, start: int, end: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the run, and the nearest row, for queries whose class has columns start to end."""
    own, parts = block[:, start:end], ((0, start), (start, end), (end, block.shape[1]))
    levels, columns = [], []
    for first, last in parts:
        if last > first:
            level, column = block[:, first:last].min(1)
        else:
            level = block.new_full((len(block),), torch.inf)
            column = torch.zeros_like(level, dtype=torch.int64)
        levels.append(level)
        columns.append(column + first)
    left, mine, right = levels
    broken = torch.minimum(left, right)
    matches = _count(own < broken.unsqueeze(1))
    tied = (mine <= broken) & (broken < torch.inf)
    if bool(tied.any()):
        tied &= _count(own <= broken.unsqueeze(1)) > matches
    for query in tied.nonzero().squeeze(1).tolist():
        level = block[query] == broken[query]
        # of the rows at the distance of the break, those that come first still belong to the run
        first = torch.cat([order[:start][level[:start]], order[end:][level[end:]]]).min()
        matches[query] += (order[start:end][level[start:end]] < first).sum()
    smallest, part = torch.stack([mine, left, right]).min(0)
    column = torch.stack([columns[1], columns[0], columns[2]]).gather(0, part[None]).squeeze(0)
    # a part without columns gives one that is not there
    row = order[column.clamp(max=len(order) - 1)]
    return matches, row.masked_fill(smallest == torch.inf, -1)


def _count(chosen: Tensor) -> Tensor:
    return chosen.sum(1, dtype=torch.int32).to(torch.int64)


def _distance(queries: Tensor, rows: Tensor, nearest: Tensor) -> Tensor:
    direct = (queries - rows[nearest.clamp(min=0)]).square().sum(-1)
    return direct.masked_fill(nearest < 0, torch.inf)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No rounding of factors to TF32 or bfloat16, which would put neighbours in another order."""
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
