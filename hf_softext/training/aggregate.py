"""Training on bags of samples of which only the mean label is known."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback

from hf_softext.training.loss_columns import all_labels
from hf_softext.training.softext_trainer import SoftextTrainer


class BagBatchSampler(Sampler[list[int]]):
    """Batches of whole bags, the same number for each process.

    A batch has as many bags as would fit if all were as large as the largest, or fewer, where they
    do not divide: the bags of an epoch are spread evenly over its batches. Nothing is dropped;
    bags repeat only where there are not enough for a batch of each process.

    Args:
        bag_id: the bag of each sample.
        batch_size: samples of a batch, at most.
        seed: of the order of bags, with the epoch.
        shuffle: whether the order is random, or that in which bags first appear.
        processes: of how many the batches of an epoch are.
        rank: which of them this one is.

    Raises:
        ValueError: a bag larger than a batch, or no sample.
    """

    def __init__(
        self,
        bag_id: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        processes: int = 1,
        rank: int = 0,
    ):
        found: dict[int, list[int]] = {}
        for index, bag in enumerate(bag_id):
            found.setdefault(int(bag), []).append(index)
        if not found:
            raise ValueError("bag_id: there is no sample.")
        bag, largest = max(found.items(), key=lambda item: len(item[1]))
        if len(largest) > batch_size:
            raise ValueError(
                f"bag {bag} has {len(largest)} samples, and a batch {batch_size}: it would be cut. "
                "Use a larger per_device batch size, or smaller bags."
            )
        self.bags = list(found.values())
        self.seed = seed
        self.shuffle = shuffle
        self.processes = processes
        self.rank = rank
        self.epoch = 0
        together = batch_size // len(largest) * processes
        # batches of each process
        self.rounds = -(-len(self.bags) // together)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: another order, the same after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(len(self.bags))
        if self.shuffle:
            key = random.Random(f"bags {self.seed} {self.epoch}").getrandbits(63)
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(key))
        batches = self.rounds * self.processes
        if len(order) < batches:
            order = order.repeat(-(-batches // len(order)))[:batches]
        for part in order.tensor_split(batches)[self.rank :: self.processes]:
            yield [index for bag in part.tolist() for index in self.bags[bag]]


class AggregateTrainer(SoftextTrainer):
    """Trains with `aggregate` on bags that stay whole.

        bags = make_bags(dataset, bag_size=8, seed=0)
        AggregateTrainer(model=model, args=args, train_dataset=bags, loss="aggregate")

    The training set has a column `bag_id`, and as label of each sample that of its bag;
    `per_device_train_batch_size` is how many samples a micro-batch has at most. The loss of an
    optimizer step is the mean over its bags.

    An evaluation set without `bag_id` has labels of single samples. One with it is evaluated bag by
    bag, in a single process, and must have the samples of each bag in a row, so that predictions
    come in its order; `eval_loss` is then the mean over batches, which have the same number of
    bags, or one less.

    Args:
        *args: as for `SoftextTrainer`.
        **kwargs: as for `SoftextTrainer`.

    Raises:
        ValueError: a loss that does not know of bags, no column `bag_id`, a bag that is larger
            than a micro-batch or has different labels, a stream, DataParallel, or a sampling
            strategy other than "random" and "sequential".
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if "bag_id" not in self.loss.needs:
            raise ValueError(
                f"loss {self.loss.name!r} does not know of bags: use loss='aggregate'."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                "DataParallel would cut bags: use one process for each device, as accelerate "
                "launch does."
            )
        strategy = str(getattr(self.args, "train_sampling_strategy", "random"))
        if strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy={strategy!r} does not keep bags whole: use 'random' or "
                "'sequential'."
            )
        self._shuffle = strategy == "random"
        if self.train_dataset is not None:
            _check_bags(self.train_dataset)
            self._bags = self._sampler()
        self.add_callback(_Epochs(self))

    def _sampler(self) -> BagBatchSampler:
        dataset: Any = self.train_dataset
        return BagBatchSampler(
            dataset["bag_id"],
            self._train_batch_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shuffle=self._shuffle,
            processes=self.args.world_size,
            rank=self.args.process_index,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Have the bags in the order of an epoch."""
        self._bags.set_epoch(epoch)

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's, in batches of whole bags, of which this process has its own."""
        # the size of a batch may have been changed
        self._bags = self._sampler()
        return _rebatched(super().get_train_dataloader(), self._bags)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As the Trainer's; in batches of whole bags where the dataset has `bag_id`."""
        return self._whole(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `get_eval_dataloader`."""
        return self._whole(super().get_test_dataloader(test_dataset))

    def _whole(self, loader: DataLoader) -> DataLoader:
        dataset: Any = loader.dataset
        if "bag_id" not in (getattr(dataset, "column_names", None) or ()):
            return loader
        if self.args.world_size > 1:
            raise ValueError(
                "a dataset with 'bag_id' is evaluated in a single process; without that column "
                "each sample is for itself."
            )
        _check_bags(dataset)
        sampler = BagBatchSampler(dataset["bag_id"], self.args.eval_batch_size, shuffle=False)
        if [index for batch in sampler for index in batch] != list(range(len(dataset))):
            raise ValueError(
                "the dataset does not have the samples of each bag in a row: sort it by 'bag_id'."
            )
        return _rebatched(loader, sampler)


class _Epochs(TrainerCallback):
    """Tells the order of bags which epoch begins, also where a run resumes within it."""

    def __init__(self, trainer: AggregateTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # a float that may end just below a whole number
        self.trainer.begin_epoch(int((state.epoch or 0.0) + 1e-6))


def _rebatched(loader: DataLoader, sampler: BagBatchSampler) -> DataLoader:
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _check_bags(dataset: Any) -> None:
    """Raise ValueError where the samples of a bag have different labels."""
    if not hasattr(dataset, "__len__"):
        raise ValueError("the dataset is a stream, whose bags cannot be kept whole.")
    labels, bag_id = all_labels(dataset), torch.as_tensor(list(dataset["bag_id"]))
    _, bag = bag_id.unique(return_inverse=True)
    rows = torch.arange(len(bag))
    first = torch.full_like(bag, len(bag)).scatter_reduce(0, bag, rows, "amin")[bag]
    other = (labels != labels[first]).reshape(len(bag), -1).any(-1)
    if bool(other.any()):
        at = int(other.nonzero()[0, 0])
        raise ValueError(
            f"sample {at} has the label {labels[at].tolist()}, and the first of its bag "
            f"{int(bag_id[at])} has {labels[first[at]].tolist()}: each must have that of the bag, "
            "see make_bags."
        )
