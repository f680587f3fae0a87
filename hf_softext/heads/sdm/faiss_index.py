"""Neighbours from faiss."""

from typing import Any

import torch
from torch import Tensor

# neighbours of the first search; where a run is not over, the next looks for this many times more
_FIRST, _FACTOR = 64, 8


def leading_matches(
    queries: Tensor,
    query_classes: Tensor,
    rows: Tensor,
    row_classes: Tensor,
    *,
    exclude: Tensor | None = None,
    limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `functional.nearest_rows.leading_matches` gives, from an exact index of faiss.

    Runs on the CPU. Rows whose distances differ by rounding alone may come in another order.

    Raises:
        ImportError: faiss is not installed.
    """
    faiss = _faiss()
    count, home = len(rows), queries.device
    matches = torch.zeros(len(queries), dtype=torch.int64)
    nearest = torch.full_like(matches, -1)
    queries, rows, classes = queries.cpu().contiguous(), rows.cpu().contiguous(), row_classes.cpu()
    wanted, own = query_classes.cpu(), None if exclude is None else exclude.cpu()
    if count and len(queries):
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(rows.numpy())
        most = min(count, (count if limit is None else limit) + 2)
        open_rows, width = torch.arange(len(queries)), min(_FIRST, most)
        while len(open_rows):
            found = torch.from_numpy(index.search(queries[open_rows].numpy(), width)[1])
            skip = None if own is None else found == own[open_rows, None]
            same = classes[found] == wanted[open_rows, None]
            run = (same if skip is None else same | skip).to(torch.int32).cumprod(1)
            matches[open_rows] = (run if skip is None else run * ~skip).sum(1)
            # the first that is not the row itself
            first = torch.zeros_like(open_rows) if skip is None else skip[:, 0].long()
            inside = first < width
            row = found.gather(1, first.clamp(max=width - 1)[:, None]).squeeze(1)
            nearest[open_rows] = row.masked_fill(~inside, -1)
            going_on = run[:, -1].bool()
            if width == most:
                break
            open_rows, width = open_rows[going_on], min(width * _FACTOR, most)
    if limit is not None:
        matches.clamp_(max=limit)
    direct = (queries - rows[nearest.clamp(min=0)]).square().sum(-1) if count else matches.float()
    distance = direct.masked_fill(nearest < 0, torch.inf)
    return matches.to(home), nearest.to(home), distance.to(home)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'index="faiss" needs faiss: pip install faiss-cpu, or take index="torch", which is '
            "exact too."
        ) from error
    return faiss
