"""Adoption: teach a pretrained model to compute under a new attention what it computed before."""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.record import all_configs, write_block


@dataclass
class AdoptionArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of adoption, and what to adopt.

    `model`, `attention`, `data` and `output_dir` are needed by `hf_softext.training.adopt.adopt`;
    the Trainer itself takes the models and datasets that it is given.
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
    freeze_embeddings: bool = field(
        default=True, metadata={"help": "Leave the input embeddings as they are."}
    )
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up: steps, or a share of them below 1."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Examples in a step on a device."}
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
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate the loss alone."})
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "A head that no hidden state depends on gets no gradient."}
    )

    def method_parameters(self) -> dict[str, Any]:
        """The parsed `parameters`; raises ValueError where they are not a JSON object."""
        try:
            parsed = json.loads(self.parameters)
        except json.JSONDecodeError as error:
            raise ValueError(f"parameters={self.parameters!r} is not JSON: {error}.") from None
        if not isinstance(parsed, dict):
            raise ValueError(
                f"parameters={self.parameters!r} must be a JSON object such as '{{\"power\": 3}}'."
            )
        return parsed


class AdoptionTrainer(Trainer):
    r"""Distils a model into its copy with another attention.

    $$L = \frac1N\sum_{n}\Big[\frac1{|S|}\sum_{s\in S}\frac{\lVert h_s(n)-h^*_s(n)\rVert^2}{\lVert
    h^*_s(n)\rVert^2} + \mathrm{KL}\big(p^*(n)\,\Vert\,p(n)\big)\Big]$$

    over the real tokens n and the hidden states S of every layer, with the teacher's values
    starred. The second term is there for models with logits; logits of a whole sequence count once
    for each of its tokens. Both models run without
    dropout: the target is what the original computes, not a noisy version of it.

    Args:
        model: the student, already switched to the new attention.
        teacher: the original; it is frozen.
        method: the student's attention method and its final parameters: a pair, for methods that
            are eased in.
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
        method: tuple[AttentionMethod, dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        if teacher is model:
            raise ValueError(
                "teacher and model are the same object: pass the original, loaded separately."
            )
        # transformers before 5.19 reads "already scaled" from the presence of compute_loss_func;
        # it is never called
        super().__init__(model=model, args=args, compute_loss_func=adoption_loss, **kwargs)
        self.teacher: Any = teacher.requires_grad_(False).eval().to(args.device)
        if args.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        if method is not None and method[0].start and args.anneal > 0:
            self.add_callback(EaseIn(*method, share=args.anneal))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The adoption loss of a batch; see the class."""
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        model.eval()
        student = model(**inputs, output_hidden_states=True, return_dict=True)
        with torch.no_grad():
            teacher = self.teacher(**inputs, output_hidden_states=True, return_dict=True)
        total, items = adoption_loss(student, teacher, inputs)
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
            inputs = {
                name: value
                for name, value in self._prepare_inputs(batch).items()
                if name != "labels"
            }
            own, target = [
                mean_pool(
                    m(**inputs, output_hidden_states=True, return_dict=True),
                    inputs.get("attention_mask"),
                )
                for m in (student, self.teacher)
            ]
            cosines.append(self.accelerator.gather_for_metrics(F.cosine_similarity(own, target)))
        return torch.cat(cosines).mean().item()


def adoption_loss(student: Any, teacher: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the adoption loss over the real tokens of a batch, and their number.

    Args:
        student: outputs of the student, with hidden states.
        teacher: outputs of the teacher, with hidden states.
        inputs: what both were called with, for its `attention_mask` and `decoder_attention_mask`.
    """
    total, items = torch.zeros(()), torch.zeros(())
    for kind, mask_name in (
        ("hidden_states", "attention_mask"),
        ("encoder_hidden_states", "attention_mask"),
        ("decoder_hidden_states", "decoder_attention_mask"),
    ):
        states, targets = getattr(student, kind, None), getattr(teacher, kind, None)
        if states is None or targets is None:
            continue
        mask = _token_mask(inputs.get(mask_name), targets[-1])
        errors = [relative_error(h, target) for h, target in zip(states, targets, strict=True)]
        total = total + (torch.stack(errors).mean(dim=0) * mask).sum()
        items = items + mask.sum()
    logits = getattr(student, "logits", None)
    if logits is not None:
        target = teacher.logits
        divergence = F.kl_div(
            F.log_softmax(logits.float(), -1),
            F.log_softmax(target.float(), -1),
            reduction="none",
            log_target=True,
        ).sum(-1)
        if divergence.dim() == 1:
            mask = mask.sum(-1)
        # logits that belong neither to tokens nor to a sequence (pixels, boxes) are left to the
        # hidden states
        if divergence.shape == mask.shape:
            total = total + (divergence * mask).sum()
    return total, items


def mean_pool(outputs: Any, mask: Tensor | None) -> Tensor:
    """Mean of the last hidden states (an encoder's, if there is one) over the real tokens."""
    states = getattr(outputs, "encoder_hidden_states", None) or outputs.hidden_states
    weight = _token_mask(mask, states[-1])[..., None]
    return (states[-1].float() * weight).sum(1) / weight.sum(1)


def relative_error(states: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of (B, T, D) states to their targets over the targets' squared length."""
    states, targets = states.float(), targets.float()
    return (states - targets).square().sum(-1) / targets.square().sum(-1).clamp(min=1e-12)


def _token_mask(mask: Tensor | None, states: Tensor) -> Tensor:
    if mask is not None and mask.shape == states.shape[:2]:
        return mask.float()
    return torch.ones(states.shape[:2], device=states.device)


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
        self._write(model, {**self.parameters, **eased})

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Leave the final parameters."""
        self._write(model, self.parameters)

    def _write(self, model: Any, parameters: dict[str, Any]) -> None:
        for config in all_configs(model.config):
            write_block(config, self.method.name, parameters)
