"""Watches for softmax collapse while a Trainer trains."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.trainer_utils import IntervalStrategy

from hf_softext.functional.softmax_collapse import softmax_collapse


class SoftmaxCollapseCallback(TrainerCallback):
    r"""Logs how much of a batch cross-entropy can hardly learn from any more.

        trainer = Trainer(...)
        SoftmaxCollapseCallback().watch(trainer)

    Adds to each training line of the log, over the rows (tokens or examples) with a label:

    - `softmax_saturated`: share whose softmax denominator is exactly 1,
    - `zero_loss`: share whose cross-entropy is exactly 0, and the gradient at the label with it,

    in the precision of `dtype`; see `softmax_collapse`. Warns once, in one line, when `zero_loss`
    exceeds `threshold`. Both are what cross-entropy makes of the logits, whatever loss is trained.

    Of the optimizer steps that are logged all micro-batches count, on all processes; the others
    cost nothing. With `logging_strategy="epoch"` every step counts, at the cost of some more passes
    over the logits. Evaluation does not count, nor does a forward pass without gradient.

    Args:
        threshold: share of zero losses above which to warn; 1 never warns.
        shift_labels: whether the label of a position is the next token. By default as the Trainer
            itself decides: the model's loss is transformers' causal one and it has no encoder.
        dtype: precision of the loss. By default that of the logits, as the model returns them; but
            float32 for a model whose own loss is transformers' causal one, which converts to it.

    Notes:
        `callbacks=[SoftmaxCollapseCallback()]` works too, with two losses, of which a warning
        tells: the reporters of `report_to` come before it then and miss its numbers, and the
        labels that a `compute_loss_func` gets stay hidden.

        Where the model gets no labels (label smoothing), or returns no logits (a fused loss), or
        its labels are no classes, there is nothing to count, and one warning says so. A label
        outside the classes (another `ignore_index` than -100) is no label.

        What counts (a forward hook on the model, a wrapper of `compute_loss_func`) exists only
        during a step that counts. A run that an exception ends within such a step leaves it
        behind; the next `train` or `remove` takes it off.
    """

    def __init__(
        self,
        threshold: float = 0.01,
        shift_labels: bool | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold!r} must be a share between 0 and 1.")
        self.threshold, self.shift_labels, self.dtype = threshold, shift_labels, dtype
        self._trainer: Any = None
        self._model: Any = None
        self._undo: Callable[[], None] | None = None
        self._found: list[Tensor] = []
        self._steps = 0
        self._said: set[str] = set()

    def watch(self, trainer: Trainer) -> "SoftmaxCollapseCallback":
        """Add this callback to `trainer`, in front of all that report its log."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)
        self._trainer = trainer
        return self

    def remove(self) -> None:
        """Take off what counts, if it is on."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Forget an earlier run, also one that did not end well."""
        self.remove()
        self._found, self._steps = [], 0
        self._said.clear()
        if args.report_to and self._trainer is None:
            self._say(
                f"SoftmaxCollapseCallback comes after the reporters of report_to="
                f"{args.report_to!r}, which miss its numbers: add it with watch(trainer).",
            )

    def on_step_begin(self, args, state, control, model: Any = None, **kwargs):
        """Start counting if this step will be logged."""
        self.remove()
        step = state.global_step + 1
        each = args.logging_strategy == IntervalStrategy.EPOCH
        due = args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0
        if each or due or (step == 1 and args.logging_first_step):
            self._steps += 1
            self._model = model
            loss = getattr(self._trainer, "compute_loss_func", None)
            if loss is None:
                # left out of a compiled graph, which would hold the objects of the first step
                hook = torch.compiler.disable(self._on_forward)
                self._undo = model.register_forward_hook(hook, with_kwargs=True).remove
            else:
                self._trainer.compute_loss_func = self._counted(loss)
                self._undo = lambda: setattr(self._trainer, "compute_loss_func", loss)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """The forward passes of this step are over."""
        self.remove()
        self._found = [self._total(args.device)]

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Put the shares into the line that is being logged."""
        # evaluation and the summary at the end have no "loss"
        if not self._steps or logs is None or "loss" not in logs:
            return
        # every process gets here, also one without a row
        total: Any = reduce(self._total(args.device), "sum")
        self._found, self._steps = [], 0
        rows, saturated, zero_loss = total.tolist()
        if not rows:
            self._say("SoftmaxCollapseCallback found no row with a label to count.", key="nothing")
            return
        shares = {"softmax_saturated": saturated / rows, "zero_loss": zero_loss / rows}
        logs.update(shares)
        # the Trainer has copied the line there already
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1].update(shares)
        if shares["zero_loss"] > self.threshold:
            self._say(
                f"Softmax collapse: {shares['zero_loss']:.1%} of the rows have a cross-entropy of "
                f"exactly 0 (step {state.global_step}) and teach next to nothing. Ways out: a "
                f"StableMax loss, PerpGradCallback, weight decay, float32 logits if they are not.",
                state,
                key="collapse",
            )

    def on_train_end(self, args, state, control, **kwargs):
        """Leave nothing behind."""
        self.remove()
        self._found, self._model = [], None

    def _on_forward(self, module: Any, inputs: Any, given: Mapping, output: Any) -> None:
        shifted = given.get("shift_labels")
        labels = given.get("labels") if shifted is None else shifted
        dtype = torch.float32 if _causal(self._model) else None
        self._count(output, labels, shifted is not None, self.dtype or dtype)

    def _counted(self, loss: Callable) -> Callable:
        def counted(outputs: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
            self._count(outputs, labels, False, self.dtype)
            return loss(outputs, labels, *args, **kwargs)

        return counted

    def _count(self, output: Any, labels: Any, shifted: bool, dtype: torch.dtype | None) -> None:
        if not torch.is_grad_enabled():
            return
        logits = output.get("logits") if isinstance(output, Mapping) else None
        if not isinstance(logits, Tensor):
            problem = "returns no logits"
        elif not isinstance(labels, Tensor):
            problem = "gets no labels, as label smoothing or compute_loss_func takes them away"
        elif (
            labels.is_floating_point()
            or not logits.is_floating_point()
            or labels.shape != logits.shape[:-1]
            or logits.shape[-1] == 1
        ):
            problem = (
                f"has labels of shape {tuple(labels.shape)} and {labels.dtype} for logits of shape "
                f"{tuple(logits.shape)} and {logits.dtype}, which is no classification of rows"
            )
        else:
            labels, shift = labels.long(), self.shift_labels
            if shift is None:
                shift = _causal(self._model) and not _has_encoder(self._model)
            if shift and not shifted:
                # as transformers does it: move the labels, which are small, and not the logits
                labels = F.pad(labels[..., 1:], (0, 1), value=-100)
            outside = (labels < 0) | (labels >= logits.shape[-1])
            labels = labels.masked_fill(outside, -100)
            found = softmax_collapse(logits.detach(), labels, dtype=dtype)
            self._found.append(torch.stack(found))
            return
        text = f"SoftmaxCollapseCallback has nothing to count: the model {problem}."
        self._say(text, key="nothing")

    def _total(self, device: Any) -> Tensor:
        total = torch.zeros(3, dtype=torch.long, device=device)
        # from several devices under DataParallel
        for counts in self._found:
            total += counts.to(device)
        return total

    def _say(self, message: str, state: Any = None, key: str | None = None) -> None:
        key = key or message
        if key not in self._said and (state is None or state.is_world_process_zero):
            self._said.add(key)
            warnings.warn(message, UserWarning, stacklevel=3)


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _causal(model: Any) -> bool:
    loss_type = getattr(_bare(model), "loss_type", None)
    return LOSS_MAPPING.get(loss_type or "") is ForCausalLMLoss


def _has_encoder(model: Any) -> bool:
    return getattr(getattr(_bare(model), "config", None), "is_encoder_decoder", False)
