"""What a loss needs of a model and of a dataset, looked at before anything runs."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from hf_softext.catalog import find
from hf_softext.losses import SoftextLoss, list_losses
from hf_softext.training.problem import problem_kinds

# what a batch may bring for a loss, and how to have it
WHERE = {
    "sample_index": "the position of each sample in the training set",
    "bag_id": "an integer for each sample: its bag; AggregateTrainer keeps bags whole",
    "teacher_logits": "the teacher's logits for each sample, or give DistillationTrainer (softext "
    "train distill) a teacher",
    "teacher_tough": "the tough teacher's prediction, or give DistillationTrainer that teacher",
    "teacher_tolerant": "the tolerant teacher's prediction, or give DistillationTrainer that one",
    "aux_logits": "logits of a second head: DistillationTrainer (softext train distill) makes one",
    "perturbed_logits": "logits of inputs under attack, which AdversarialTrainer finds",
    "sample_weight": "what each sample counts",
}
_TRAINERS = {
    "bag_id": "AggregateTrainer",
    "teacher_logits": "DistillationTrainer (softext train distill)",
    "teacher_tough": "DistillationTrainer",
    "teacher_tolerant": "DistillationTrainer",
    "aux_logits": "DistillationTrainer (softext train distill)",
    "perturbed_logits": "AdversarialTrainer",
}


def trainer_for(loss: SoftextLoss) -> str:
    """The Trainer that has what a loss needs."""
    found = [_TRAINERS[name] for name in sorted(loss.needs) if name in _TRAINERS]
    return found[0] if found else "SoftextTrainer, or SoftextTrainerMixin before your Trainer"


def check_kind(
    loss: SoftextLoss, model: Any, dataset: Any = None, provided: frozenset[str] = frozenset()
) -> None:
    """Raise ValueError where a loss is for another kind of problem than the model.

    Args:
        loss: that is asked for.
        model: that is to be trained.
        dataset: to train on.
        provided: what of that which losses need the Trainer computes; losses that need more, and
            find no column of it, are not suggested.
    """
    kinds = problem_kinds(model)
    labels = first_labels(dataset)
    if labels is not None and "token" not in kinds:
        kinds &= _label_kinds(labels)
    if not kinds & loss.kinds:
        wanted = ", ".join(sorted(kinds)) or "nothing that its labels fit"
        there = provided | {*(getattr(dataset, "column_names", None) or ())}
        fitting = sorted({name for kind in kinds for name in list_losses(kind)})
        fitting = [name for name in fitting if find(name, "loss").load().needs <= there]
        raise ValueError(
            f"loss {loss.name!r} is for {', '.join(sorted(loss.kinds))} problems; "
            f"{type(model).__name__} with these labels is for {wanted}. Losses that fit: "
            f"{', '.join(fitting)}."
        )


def check_columns(loss: SoftextLoss, dataset: Any, provided: frozenset[str], trainer: str) -> None:
    """Raise ValueError where training would not have what the loss needs."""
    columns = getattr(dataset, "column_names", None)
    for name in sorted(loss.needs - provided):
        if columns is None or name not in columns:
            hint = f": {WHERE[name]}" if name in WHERE else ""
            raise ValueError(
                f"loss {loss.name!r} needs {name!r}, which {trainer} does not compute and "
                f"train_dataset has no column of{hint}."
            )


def prepare_dataset(loss: SoftextLoss, dataset: Any) -> Any:
    """Show the loss all training labels if it wants to see them, and number the samples.

    Returns:
        The dataset, with a column `sample_index` where the loss needs one and there is none.
    """
    if dataset is None:
        return None
    wants = "sample_index" in loss.needs
    if (loss.fits or wants) and isinstance(dataset, IterableDataset):
        raise ValueError(
            f"loss {loss.name!r} must see the labels of the whole training set, and train_dataset "
            "is a stream: use a dataset with a length."
        )
    if loss.fits:
        loss.fit(all_labels(dataset))
    if not wants:
        return dataset
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return _Numbered(dataset)
    if "sample_index" not in columns:
        return dataset.add_column("sample_index", list(range(len(dataset))))
    index = torch.as_tensor(_column(dataset, "sample_index"))
    if not torch.equal(index.sort().values, torch.arange(len(dataset))):
        raise ValueError(
            f"column 'sample_index' goes up to {int(index.max())} and has {len(index.unique())} "
            f"numbers for {len(dataset)} samples: number them from 0, each once, after filtering "
            "and putting datasets together, or leave the column out."
        )
    return dataset


def first_labels(dataset: Any) -> Tensor | None:
    """The labels of the first sample; None where they cannot be seen."""
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    if len(dataset) == 0:
        return None
    sample = dataset[0]
    return _labels_of(sample) if isinstance(sample, dict) else None


def all_labels(dataset: Any) -> Tensor:
    """The labels of every sample, (N,) or (N, C)."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        for name in ("labels", "label", "label_ids"):
            if name in columns:
                found = _column(dataset, name)
                _check_number(name, found[0] if found else 0)
                return torch.as_tensor(found)
    labels = [_labels_of(dataset[index]) for index in range(len(dataset))]
    if any(label is None for label in labels):
        raise ValueError("train_dataset has samples without 'labels'.")
    return torch.stack([label for label in labels if label is not None])


def _column(dataset: Any, name: str) -> list[Any]:
    """A column as plain numbers, whatever format the dataset gives them in."""
    plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    return list(plain[name])


def _labels_of(sample: dict[str, Any]) -> Tensor | None:
    for name in ("labels", "label", "label_ids"):
        if sample.get(name) is not None:
            _check_number(name, sample[name])
            return torch.as_tensor(sample[name])
    return None


def _check_number(name: str, label: Any) -> None:
    first = label[0] if isinstance(label, list | tuple) and label else label
    if isinstance(first, str):
        raise ValueError(
            f"column {name!r} has texts such as {first!r}, and a loss takes numbers: number them "
            f"from 0, by dataset.class_encode_column({name!r}) or with a map over label2id, and "
            "give the model the same id2label."
        )


def _label_kinds(labels: Tensor) -> set[str]:
    if not labels.is_floating_point():
        # of each token, of each sample, or 0 and 1 of one logit
        return {"multiclass", "token", "binary"}
    several = labels.dim() > 0 and labels.numel() > 1
    # shares of the classes are floats as well
    return {"multilabel", "regression", "multiclass"} if several else {"regression", "binary"}


class _Numbered(Dataset):
    """Samples that know their position."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "sample_index": index}
