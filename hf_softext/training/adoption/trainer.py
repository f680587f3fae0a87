"""Adoption: teach a pretrained model to compute under a new attention what it computed before."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.record import write_blocks
from hf_softext.training.adoption.loss import adoption_loss, layer_centers, mean_pool
from hf_softext.training.arguments import json_object
from hf_softext.training.processes import check_joined


@dataclass
class AdoptionArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of adoption, and what to adopt.

    `model`, `attention`, `data` and `output_dir` are needed by `hf_softext.adopt`; the Trainer
    itself takes the models and datasets that it is given.
    """

    model: str | None = field(
        default=None, metadata={"help": "Model to adopt: a hub id or a folder."}
    )
    attention: str | None = field(default=None, metadata={"help": "Attention method to adopt."})
    parameters: str = field(
        default="{}",
        metadata={"help": "Parameters of the method as JSON, such as '{\"power\": 3}'."},
    )
    data: str | None = field(
        default=None,
        metadata={"help": "Text to adopt on: .txt (a line an example), .jsonl, .csv or .parquet."},
    )
    column: str = field(
        default="text", metadata={"help": "The column of a table that holds the text."}
    )
    max_length: int = field(default=256, metadata={"help": "Tokens of an example that are used."})
    anneal: float = field(
        default=0.5,
        metadata={
            "help": "Share of the steps over which a sharp method is eased in from its gentlest "
            "form."
        },
    )
    calibrate_scale: bool = field(
        default=True,
        metadata={"help": "Choose the scale of the scores that fits best before training."},
    )
    freeze_embeddings: bool = field(
        default=True, metadata={"help": "Leave the input embeddings as they are."}
    )
    max_steps: int = field(default=2000, metadata={"help": "Optimizer steps."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up: steps, or a share of them below 1."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Examples in a step on a device."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Batches of similar length waste no time on padding."},
    )
    logging_steps: float = field(
        default=25, metadata={"help": "Steps between two lines of the log."}
    )
    save_steps: float = field(
        default=100, metadata={"help": "Steps between two points to resume from."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Points to resume from that are kept."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available,
        metadata={"help": "Pin memory; by default where there is an accelerator."},
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate the loss alone."})
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "A head that no hidden state depends on gets no gradient."}
    )

    def method_parameters(self) -> dict[str, Any]:
        """The parsed `parameters`; raises ValueError where they are not a JSON object."""
        return json_object("parameters", self.parameters)


class AdoptionTrainer(Trainer):
    r"""Distils a model into its copy with another attention.

    Minimises `adoption_loss` over the tokens of an optimizer step: the hidden states of every
    layer, then the logits where there are any. Both models run without dropout: the target is what
    the original computes, not a noisy version of it.

    Args:
        model: the student, already switched to the new attention.
        teacher: the original; it is frozen.
        args: training arguments.
        **kwargs: as for `Trainer`. A batch with `labels` is weighted by its labels that are not
            -100, which makes accumulation and several processes exact; labels are used for nothing
            else.
    """

    # the loss is a sum over tokens divided by the tokens of the whole optimizer step
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        teacher: Any,
        args: AdoptionArguments,
        **kwargs: Any,
    ):
        if teacher is model:
            raise ValueError(
                "teacher and model are the same object: pass the original, loaded separately."
            )
        # transformers before 5.19 reads "already scaled" from the presence of compute_loss_func;
        # it is never called
        super().__init__(model=model, args=args, compute_loss_func=adoption_loss, **kwargs)
        check_joined(self.args)
        self.teacher: Any = teacher.requires_grad_(False).eval().to(args.device)
        self._centers: list[Tensor] | None = None
        if args.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The adoption loss of a batch; see the class."""
        model.eval()
        total, items = self._loss(model, inputs)
        if num_items_in_batch is not None:
            loss = total / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        else:
            loss = total / items
            if torch.is_grad_enabled():
                loss = loss / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def agreement(self, rows: Any) -> float:
        """Mean cosine between the student's and the teacher's mean-pooled last hidden states."""
        student = self.accelerator.unwrap_model(self.model).eval()
        cosines = []
        for batch in self.get_eval_dataloader(rows):
            inputs = self._prepare_inputs(batch)
            mask = inputs.get("attention_mask")
            own = mean_pool(_states(student, inputs), mask)
            target = mean_pool(_states(self.teacher, inputs), mask)
            cosines.append(self.accelerator.gather_for_metrics(F.cosine_similarity(own, target)))
        return torch.cat(cosines).mean().item()

    @torch.no_grad()
    def sample_loss(self) -> float:
        """The adoption loss on the sample that the layers' centers come from."""
        student = self.accelerator.unwrap_model(self.model).eval()
        totals = [self._loss(student, batch) for batch in self._sample()]
        return float(sum(total for total, _ in totals) / sum(items for _, items in totals))

    def _loss(self, model: Any, inputs: dict) -> tuple[Tensor, Tensor]:
        student = _states(model, inputs)
        with torch.no_grad():
            teacher = _states(self.teacher, inputs)
            if self._centers is None:
                self._centers = self._measure_centers()
        return adoption_loss(student, teacher, inputs, self._centers)

    def _sample(self) -> list[dict]:
        """The first 32 training examples in batches of 8: the same in every process and run."""
        data: Any = self.train_dataset
        rows = list(islice(iter(data), 32))
        collate: Any = self._get_collator_with_removed_columns(self.data_collator)
        return [self._prepare_inputs(collate(rows[n : n + 8])) for n in range(0, len(rows), 8)]

    def _measure_centers(self) -> list[Tensor]:
        found = [layer_centers(_states(self.teacher, batch), batch) for batch in self._sample()]
        return [torch.stack(layer).mean(dim=0) for layer in zip(*found, strict=True)]


def _states(model: Any, inputs: dict) -> Any:
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**inputs, output_hidden_states=True, return_dict=True)


class EaseIn(TrainerCallback):
    """Moves a method's numeric parameters from where it is easiest to train to where it shall end.

    Depends on the step alone, so a resumed run continues where it was.
    """

    def __init__(self, method: AttentionMethod, parameters: dict[str, Any], share: float):
        self.method, self.parameters, self.share = method, parameters, share

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Set the parameters for this step."""
        done = min(1.0, state.global_step / max(1.0, self.share * state.max_steps))
        eased = {
            name: start + done * (self.parameters[name] - start)
            for name, start in self.method.start.items()
        }
        write_blocks(model, self.method.name, {**self.parameters, **eased})

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Leave the final parameters."""
        write_blocks(model, self.method.name, self.parameters)
