"""Training with the answers of a teacher."""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_softext.functional.gradient_alignment import align_gradients as aligned
from hf_softext.losses.distillation import DualHeadLoss
from hf_softext.training.problem import bare
from hf_softext.training.second_head import attach_second_head
from hf_softext.training.softext_trainer import SoftextTrainer

HEAD = "softext_second_head.safetensors"


class DistillationTrainer(SoftextTrainer):
    r"""Gives `kd`, `dhkd` and `assistive_kd` what teachers say, and `dhkd` its second head.

        DistillationTrainer(model=student, teacher=teacher, args=args, loss="dhkd", ...)

    Args:
        *args: as for `SoftextTrainer`.
        teacher: the model that gives `teacher_logits`; the dataset may have a column of them
            instead. Teachers read the same inputs as the model, so they need the same tokenizer,
            and those that it does not take, such as `token_type_ids`, as well; they are frozen, and
            in evaluation mode.
        teacher_tough: gives the predictions of that name, or there is a column of it.
        teacher_tolerant: as `teacher_tough`.
        aux_head: the second head of `dhkd`: "linear", or "mlp": Linear(D, 200), dropout of 0.1,
            batch normalisation, ReLU, Linear(200, C).
        align_gradients: whether the teacher's part of `dhkd` may take back what the labels' part
            asks for; see `hf_softext.functional.align_gradients`. Aligned micro-batch by
            micro-batch, the gradient depends on how a step is cut. Takes two backward passes.
        **kwargs: as for `SoftextTrainer`.

    Raises:
        TypeError: a teacher that is no model.
        ValueError: a teacher that the loss does not need, or that is there as a column too; one
            with other classes, or in another order, without weights, or with weights of the model;
            an option that does not go with the loss or with the wrapper of the model.

    Notes:
        In evaluation the loss is that of the labels alone, and teachers do not run.

        The second head is trained with the model, by the same optimizer, and is saved beside each
        checkpoint (`softext_second_head.safetensors`), for a resume; it is in no state_dict of the
        model, and so not in what is saved in the end. It takes the input of the model's output
        layer: a model that picks positions after it (causal language models as classifiers) cannot
        have one.

    Reference:
        P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An, "Dual-Head Knowledge Distillation:
        Enhancing Logits Utilization with an Auxiliary Head", 2024, arXiv 2411.08937.
    """

    provides: frozenset[str] = SoftextTrainer.provides | {"aux_logits"}

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module | None = None,
        teacher_tough: nn.Module | None = None,
        teacher_tolerant: nn.Module | None = None,
        aux_head: str = "linear",
        align_gradients: bool = False,
        **kwargs: Any,
    ):
        given = {
            "teacher_logits": teacher,
            "teacher_tough": teacher_tough,
            "teacher_tolerant": teacher_tolerant,
        }
        teachers = {name: model for name, model in given.items() if model is not None}
        for name, model in teachers.items():
            if not isinstance(model, nn.Module):
                raise TypeError(
                    f"{_argument(name)} is a {type(model).__name__}, not a model{_instead(model)}."
                )
        self.provides = self.provides | teachers.keys()
        super().__init__(*args, **kwargs)
        columns = getattr(self.train_dataset, "column_names", None) or ()
        for name, model in teachers.items():
            _check_teacher(name, model, self.model)
            if name not in self.loss.needs:
                raise ValueError(f"loss {self.loss.name!r} does not need {_argument(name)}.")
            if name in columns:
                raise ValueError(
                    f"{_argument(name)} is given, and train_dataset has a column {name!r}: leave "
                    "one of them out."
                )
        self.teachers: dict[str, Any] = {
            name: model.requires_grad_(False).eval().to(self.args.device)
            for name, model in teachers.items()
        }
        # columns that only teachers take, and those of this batch
        self._theirs: set[str] = set()
        self._for_teachers: dict[str, Any] = {}
        self._head = None
        if "aux_logits" in self.loss.needs:
            self._check_head()
            student: Any = self.model
            self._head = attach_second_head(student, aux_head)
        self._reference: DualHeadLoss | None = None
        if align_gradients:
            self._reference = self._check_alignment()
        self._reference_gradients: list[Tensor | None] = []

    def _check_head(self) -> None:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or self.args.n_gpu > 1 or self.args.torch_compile:
            raise ValueError(
                f"the second head of {self.loss.name!r} does not work with FSDP, DeepSpeed, "
                "DataParallel or torch_compile: use one process for each device, as accelerate "
                "launch does."
            )
        if self.optimizer is not None or self.model_init is not None:
            raise ValueError(
                f"the second head of {self.loss.name!r} is made by DistillationTrainer: optimizers "
                "and model_init, which would not know it, cannot be given."
            )

    def _check_alignment(self) -> DualHeadLoss:
        loss = self.loss
        if not isinstance(loss, DualHeadLoss):
            raise ValueError(
                f"align_gradients=True is for loss='dhkd', whose two parts have a head each, not "
                f"for {loss.name!r}."
            )
        wrapped = self.args.world_size > 1 or self.args.n_gpu > 1
        if wrapped or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "align_gradients=True takes the gradient twice, which no wrapper for several "
                "processes or devices would average: use a single process."
            )
        if getattr(self.accelerator, "scaler", None) is not None:
            raise ValueError(
                "align_gradients=True does not know the scale of a GradScaler: use bf16 or float32 "
                "instead of fp16."
            )
        return DualHeadLoss(**{**_arguments(loss), "alpha": 0.0})

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        found = {name for one in self.teachers.values() for name in _inputs(one)}
        self._theirs |= found.difference(columns)
        columns.extend(sorted(found.difference(columns)))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        """As `SoftextTrainer`; keeps what teachers alone take of a batch for them."""
        self._for_teachers = {name: inputs[name] for name in self._theirs & inputs.keys()}
        return super().compute_loss(model, self._of_model(inputs), *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As `SoftextTrainer`."""
        return super().prediction_step(model, self._of_model(inputs), *args, **kwargs)

    def _of_model(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in inputs.items() if name not in self._theirs}

    def more_extras(
        self, model: nn.Module, inputs: dict[str, Any], outputs: Any, labels: Tensor
    ) -> dict[str, Any]:
        """What the teachers say, and the second head, in training."""
        found = super().more_extras(model, inputs, outputs, labels)
        if not model.training:
            return found
        for name, teacher in self.teachers.items():
            found[name] = self._answer(teacher, inputs)
        if self._head is not None:
            found["aux_logits"] = outputs["aux_logits"]
        return found

    def _answer(self, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        known, given = _inputs(teacher), {**inputs, **self._for_teachers}
        with torch.no_grad(), self.accelerator.autocast():
            return teacher(**{k: v for k, v in given.items() if k in known})["logits"]

    def _loss_of(
        self, outputs: Any, labels: Any, num_items_in_batch: Any = None, **given: Any
    ) -> Tensor:
        total = super()._loss_of(outputs, labels, num_items_in_batch=num_items_in_batch, **given)
        if self._reference is None or not self.loss.training:
            return total
        reference = self._reference(
            outputs["logits"], labels, num_items=num_items_in_batch, **given
        )
        self._reference_gradients = list(
            torch.autograd.grad(reference, self._parameters(), retain_graph=True, allow_unused=True)
        )
        # its value, and the gradient of the teacher's part alone
        return total - (reference - reference.detach())

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer; with `align_gradients`, what is added is the aligned gradient."""
        if self._reference is None:
            return super().training_step(model, *args, **kwargs)
        parameters = self._parameters()
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        loss = super().training_step(model, *args, **kwargs)
        merged = aligned([p.grad for p in parameters], self._reference_gradients)
        self._reference_gradients = []
        for parameter, old, new in zip(parameters, before, merged, strict=True):
            parameter.grad = new if old is None else old if new is None else old + new
        return loss

    def _parameters(self) -> list[nn.Parameter]:
        model: Any = self.model
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._head is not None and self.args.should_save:
            # before all else, so that a checkpoint that is complete has it
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            state = {k: v.contiguous().cpu() for k, v in self._head.state_dict().items()}
            save_file(state, folder / f"{HEAD}.tmp")
            os.replace(folder / f"{HEAD}.tmp", folder / HEAD)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._head is not None:
            file = Path(resume_from_checkpoint, HEAD)
            if not file.is_file():
                raise ValueError(
                    f"{resume_from_checkpoint} has no {HEAD}, and {self.loss.name!r} has a second "
                    "head: start without resume_from_checkpoint."
                )
            self._head.load_state_dict(load_file(file))
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def _instead(given: Any) -> str:
    """What to do with what was given in place of a model."""
    if isinstance(given, str | Path):
        return ": load it first, as by AutoModelForSequenceClassification.from_pretrained"
    if isinstance(given, list | tuple):
        return (
            ": the two of loss='assistive_kd' are teacher_tough and teacher_tolerant; other losses "
            "have one"
        )
    return ""


def _argument(name: str) -> str:
    return "teacher" if name == "teacher_logits" else name


def _arguments(loss: Any) -> dict[str, Any]:
    return {name: value for name, value in loss.config().items() if name != "name"}


def _inputs(teacher: Any) -> set[str]:
    """The names of what a model takes."""
    return set(inspect.signature(bare(teacher).forward).parameters)


def _check_teacher(name: str, teacher: Any, model: Any) -> None:
    """Raise ValueError where the logits of a teacher are not those of the model."""
    if teacher is model:
        raise ValueError(
            f"{_argument(name)} and model are the same object: load the teacher separately."
        )
    if {*map(id, teacher.parameters())} & {*map(id, model.parameters())}:
        raise ValueError(
            f"{_argument(name)} and model share weights, which would be frozen for both: load the "
            "teacher separately."
        )
    if any(parameter.is_meta for parameter in teacher.parameters()):
        raise ValueError(f"{_argument(name)} is on the meta device: load its weights first.")
    theirs, own = (getattr(bare(one), "config", None) for one in (teacher, model))
    if not hasattr(theirs, "num_labels") or not hasattr(own, "num_labels"):
        return
    classes = [_classes(config) for config in (theirs, own)]
    if len(classes[0]) != len(classes[1]):
        raise ValueError(
            f"{_argument(name)} has {len(classes[0])} classes and the model {len(classes[1])}."
        )
    named = [names for names in classes if not names[0].startswith("LABEL_")]
    if len(named) == 2 and classes[0] != classes[1]:
        at = next(i for i, pair in enumerate(zip(*classes, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"class {at} is {classes[0][at]!r} for {_argument(name)} and {classes[1][at]!r} for "
            "the model: load the model with the teacher's id2label, and number the labels of the "
            "data by it."
        )


def _classes(config: Any) -> list[str]:
    return [str(label) for _, label in sorted(config.id2label.items())]
