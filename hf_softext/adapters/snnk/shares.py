"""Each process's share of the rows, none of them twice."""

from collections.abc import Iterable
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.data_loader import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    DataLoaderStateMixin,
)
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler


def share(dataloader: Iterable[Any], state: PartialState) -> Iterable[Any]:
    """The loader of this process.

    Args:
        dataloader: plain, or made by `accelerator.prepare`.
        state: of the processes.

    Returns:
        The same with a single process, or if accelerate shares it out already.

    Raises:
        TypeError: several processes, and no `DataLoader` that could be shared out.
        ValueError: one that is shared out by a `DistributedSampler`, whose repeated rows cannot be
            told from others.
    """
    if state.num_processes == 1 or isinstance(dataloader, DataLoaderStateMixin):
        return dataloader
    if not isinstance(dataloader, DataLoader):
        raise TypeError(
            f"dataloader is a {type(dataloader).__name__}: with {state.num_processes} processes "
            "give a torch.utils.data.DataLoader, of which each takes its share."
        )
    inner = getattr(dataloader.batch_sampler, "sampler", dataloader.sampler)
    if isinstance(inner, DistributedSampler):
        raise ValueError(
            "dataloader has a DistributedSampler, which repeats rows to fill up the last batch: "
            "leave it out, each process takes its share by itself."
        )
    # which also has shuffling be the same in all processes
    return Accelerator().prepare_data_loader(dataloader, device_placement=False)


def rows_that_count(loader: Any, state: PartialState, size: int) -> int:
    """How many rows of the batch that was just taken are not there to fill it up.

    They are its first. Where the rows run out, accelerate goes on from the start of the data, so
    that every process has a batch of the same size.

    Args:
        loader: what `share` returned.
        state: of the processes.
        size: of the batch of this process.

    Raises:
        ValueError: an iterable dataset that each process cuts for itself.
    """
    if state.num_processes == 1 or not loader.end_of_dataloader:
        return size
    sampler = loader.sampler if isinstance(loader.sampler, BatchSampler) else loader.batch_sampler
    if isinstance(loader, DataLoaderDispatcher):
        left = loader.remainder
    elif not isinstance(sampler, BatchSamplerShard):
        raise ValueError(
            "dataloader has an iterable dataset that each process cuts for itself, so that rows "
            "which fill up the last batch cannot be told: use dispatch_batches=True."
        )
    elif sampler.drop_last or not sampler.even_batches:
        return size
    else:
        # not len(dataset), as a sampler may choose
        rows = len(getattr(sampler.batch_sampler, "sampler", loader.dataset))
        left = rows % loader.total_batch_size or loader.total_batch_size
    if left < 0:
        return size
    return min(max(left - state.process_index * size, 0), size)
