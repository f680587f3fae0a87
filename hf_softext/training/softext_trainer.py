"""A Trainer that takes its loss by name, and gets the numbers right."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_softext.losses import SoftextLoss, get_loss
from hf_softext.training.collapse import SoftmaxCollapseCallback
from hf_softext.training.fused import FusedHead
from hf_softext.training.loss_columns import WHERE, check_columns, check_kind, prepare_dataset
from hf_softext.training.loss_state import load_loss, save_loss
from hf_softext.training.output_layer import OutputLayer
from hf_softext.training.perp_grad import PerpGradCallback
from hf_softext.training.problem import aligned_labels, is_causal
from hf_softext.training.processes import check_joined
from hf_softext.training.quantized_buffers import leave_to_files
from hf_softext.training.training_report import REPORT, check_report, write_training_report


class SoftextTrainerMixin:
    r"""Gives any Trainer a loss by name.

        class MyTrainer(SoftextTrainerMixin, Seq2SeqTrainer): ...

    The sum of the losses is divided by what counts in all micro-batches and processes of the
    optimizer step, so that the gradient does not depend on how the step is cut; for models that
    do not divide by it themselves, such as the sequence classifiers of transformers, the stock
    Trainer's loss and gradient grow with `gradient_accumulation_steps`. A loss that is no sum over
    rows is the mean over micro-batches and processes.

    A checkpoint also holds `softext_loss.json` and, where the loss has a state,
    `softext_loss.safetensors`; a run that resumes takes both up.

    Args:
        *args: as for the Trainer.
        loss: a name of `list_losses()`, or a loss; by default `args.loss`, or "ce".
        loss_kwargs: arguments of a loss given by name; by default those of `args`.
        fused: "auto", "on" or "off", see `SoftextArguments`; by default that of `args`, or "auto".
        **kwargs: as for the Trainer.

    Raises:
        ValueError: an unknown loss or argument of it, a loss for another kind of problem than the
            model's, a column that the loss needs and the dataset lacks, options that exclude
            each other, or several processes that have not joined.
    """

    # losses are divided here; see `compute_loss`
    loss_is_scaled_for_ga: bool | None = True
    # what this trainer computes of that which losses need
    provides: frozenset[str] = frozenset({"features", "head_weight", "sample_index"})

    def __init__(
        self: Any,
        *args: Any,
        loss: str | SoftextLoss | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        fused: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_joined(self.args)
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func and loss exclude each other: give the loss by name."
            )
        check_report(getattr(self.args, "report", False))
        if self.args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor has no effect on a loss by name: use loss='ce' with "
                "loss_kwargs={'label_smoothing': ...}."
            )
        if loss is None:
            loss = str(getattr(self.args, "loss", "ce"))
            if loss_kwargs is None and hasattr(self.args, "loss_arguments"):
                loss_kwargs = self.args.loss_arguments()
        self.loss = get_loss(loss, **(loss_kwargs or {}))
        if any(True for _ in self.loss.parameters()):
            raise TypeError(f"{self.loss.name!r} has parameters, which no optimizer would see.")
        if getattr(getattr(self.model, "config", None), "output_router_logits", False):
            raise ValueError(
                "output_router_logits=True in the model's config asks for the auxiliary loss of "
                "the model's own loss, which is not used here: set it to False."
            )
        check_kind(self.loss, self.model, self.train_dataset, self.provides)
        check_columns(self.loss, self.train_dataset, self.provides, type(self).__name__)
        self.train_dataset = prepare_dataset(self.loss, self.train_dataset)
        self.loss.to(self.args.device)
        # what a callback that counts rows wraps; given outputs and labels, as transformers does it
        self.compute_loss_func = self._loss_of
        self.add_callback(_Epochs(self.loss))
        if getattr(self.args, "perp_grad", False):
            self.add_callback(PerpGradCallback())
        self._watched = bool(getattr(self.args, "watch_collapse", False))
        if self._watched:
            SoftmaxCollapseCallback().watch(self)
        self._fused_how = fused or getattr(self.args, "fused", "auto")
        self._loss_start = copy.deepcopy(self.loss.state_dict())
        self._loss_only = False
        self._attach(self.model)

    def call_model_init(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the loss begins anew with the model."""
        model = super().call_model_init(*args, **kwargs)  # pyright: ignore
        # the first is made before there is a loss
        if hasattr(self, "_loss_start"):
            self.loss.load_state_dict(self._loss_start)
            self._attach(model)
        return model

    def _attach(self: Any, model: Any) -> None:
        """Take part in the forward passes of a model."""
        leave_to_files(model)
        self._causal = is_causal(model)
        needed = self.loss.needs & {"features", "head_weight"}
        self._layer = OutputLayer(model) if needed else None
        self._fused = self._fused_head(model, self._fused_how)

    def _fused_head(self: Any, model: Any, how: str) -> FusedHead | None:
        if how not in ("auto", "on", "off"):
            raise ValueError(f"fused={how!r} must be 'auto', 'on' or 'off'.")
        if how == "off":
            return None
        head = FusedHead(model, self.loss, required=how == "on")
        problem = head.problem()
        if problem is None and self._watched:
            problem = "watch_collapse counts logits"
        if problem is None and (self.args.torch_compile or self.args.n_gpu > 1):
            problem = "torch_compile and DataParallel run the model's forward as it is"
        if problem is not None and how == "on":
            raise ValueError(f"fused='on': {problem}.")
        usable = problem is None and (how == "on" or head.worth_it)
        return head.attach() if usable else None

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # pyright: ignore
        for name in sorted({*WHERE, *self.loss.needs, "sample_weight"}):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _get_num_items_in_batch(self: Any, batch_samples: list, device: torch.device) -> Any:
        """What the sum of the losses of one optimizer step is divided by, over all processes."""
        if not self.loss.decomposable:
            return None
        counts = []
        for batch in batch_samples:
            labels = aligned_labels(batch, self._causal, self.loss.ignore_index)
            if labels is not None:
                counts.append(self.loss.count(labels, **self._extras(batch)).to(device))
        if not counts:
            return None
        total = torch.stack(counts).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum() / self._same_batch()
        return total

    def _same_batch(self: Any) -> int:
        # ranks of one tensor-parallel group see the same batch
        return self.get_tp_size() if hasattr(self, "get_tp_size") else 1

    def _extras(self: Any, batch: dict[str, Any]) -> dict[str, Any]:
        names = self.loss.needs | {"sample_weight"}
        found = {name: batch[name] for name in names if name in batch}
        weight, labels = found.get("sample_weight"), batch.get("labels")
        shifts = self._causal and batch.get("shift_labels") is None
        if shifts and weight is not None and labels is not None and weight.shape == labels.shape:
            # what a token counts stands where the token does, and moves with it
            found["sample_weight"] = F.pad(weight[..., 1:], (0, 1))
        return found

    def compute_loss(
        self: Any,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a micro-batch, scaled so that their sum is that of the optimizer step."""
        labels, given, rest = self._split(inputs)
        self.loss.train(model.training)
        if not self.loss.decomposable:
            num_items_in_batch = None
        elif num_items_in_batch is not None and not torch.is_tensor(num_items_in_batch):
            num_items_in_batch = torch.as_tensor(num_items_in_batch, device=self.args.device)
        outputs = None
        if self._fused is not None and (model.training or self._loss_only):
            outputs = self._fused_outputs(model, labels, given, rest, num_items_in_batch)
        if outputs is None:
            outputs = model(**rest)
            given |= self.more_extras(model, rest, outputs, labels)
            loss = self.compute_loss_func(
                outputs, labels, num_items_in_batch=num_items_in_batch, **given
            )
        else:
            loss = outputs["loss"]
        if num_items_in_batch is None:
            if model.training:
                loss = loss / self.current_gradient_accumulation_steps
        elif self.args.average_tokens_across_devices:
            # gradients are averaged over the processes, and the count is of all of them
            loss = loss * (self.accelerator.num_processes // self._same_batch())
        return (loss, outputs) if return_outputs else loss

    def more_extras(
        self: Any, model: nn.Module, inputs: dict[str, Any], outputs: Any, labels: Tensor
    ) -> dict[str, Any]:
        """What the loss needs and a forward pass makes; subclasses add theirs."""
        if self._layer is None:
            return {}
        features, weight = self._layer.take(outputs["logits"])
        return {"features": features, "head_weight": weight}

    def _split(self: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        rest = dict(inputs)
        labels = rest.pop("labels", None)
        shifted = rest.get("shift_labels")
        if labels is None and shifted is None:
            raise ValueError(
                f"the batch has no 'labels', only {', '.join(inputs)}: name the column 'labels' "
                "or 'label', and see that the collator keeps it."
            )
        given = self._extras(inputs)
        for name in (*WHERE, *given):
            rest.pop(name, None)
        if shifted is not None:
            rest.pop("shift_labels")
            given["shift_labels"] = shifted
        config = getattr(self.model, "config", None)
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in rest:
            make = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
            if make is not None and labels is not None:
                rest["decoder_input_ids"] = make(labels=labels)
        return labels, given, rest

    def _loss_of(
        self: Any, outputs: Any, labels: Any, num_items_in_batch: Any = None, **given: Any
    ) -> Tensor:
        batch = {"labels": labels, "shift_labels": given.pop("shift_labels", None)}
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        aligned = aligned_labels(batch, self._causal, self.loss.ignore_index)
        return self.loss(logits, aligned, num_items=num_items_in_batch, **given)

    def _fused_outputs(
        self: Any, model: nn.Module, labels: Any, given: dict[str, Any], rest: Any, num_items: Any
    ) -> Any:
        problem = self._fused.differs(model, rest)
        if problem is not None:
            self._fused = self._fused.refuse(problem)
            return None
        batch = {"labels": labels, "shift_labels": given.get("shift_labels")}
        aligned = aligned_labels(batch, self._causal, self.loss.ignore_index)
        weight = given.get("sample_weight")
        with self._fused.active(aligned, num_items=num_items, sample_weight=weight):
            return model(**rest)

    def prediction_step(
        self: Any, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """As the Trainer's; where only the loss is asked for, the logits need not exist."""
        self._loss_only = prediction_loss_only
        if inputs.get("labels") is None:
            # no loss, and the model does not know its columns
            inputs = {name: value for name, value in inputs.items() if name not in WHERE}
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)  # pyright: ignore
        finally:
            self._loss_only = False

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        # every process gets here; in `_save` only the one that writes
        self.loss.synchronize()
        super()._save_checkpoint(model, trial)  # pyright: ignore

    def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # pyright: ignore
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            save_loss(self.loss, folder)
            if getattr(self.args, "report", False):
                self._write_report(Path(folder))

    def _write_report(self: Any, folder: Path) -> None:
        args = self.args
        facts = {
            "model": type(self.accelerator.unwrap_model(self.model)).__name__,
            "optimizer": str(getattr(args.optim, "value", args.optim)),
            "learning_rate": args.learning_rate,
            "rows_in_a_step": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "seed": args.seed,
            "device": args.device.type,
        }
        write_training_report(folder / REPORT, self.state.log_history, self.loss.config(), facts)

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        load_loss(self.loss, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # pyright: ignore


class SoftextTrainer(SoftextTrainerMixin, Trainer):
    """The Trainer with a loss by name; see `SoftextTrainerMixin`.

    args = SoftextTrainingArguments(output_dir="out", loss="ldr_kl", loss_kwargs={"lam": 10})
    SoftextTrainer(model=model, args=args, train_dataset=dataset).train()
    """


class _Epochs(TrainerCallback):
    """Tells the loss which epoch begins."""

    def __init__(self, loss: SoftextLoss):
        self.loss = loss

    def on_epoch_begin(self, args, state, control, **kwargs):
        # a float that may end just below a whole number
        self.loss.on_epoch(int((state.epoch or 0.0) + 1e-6))
