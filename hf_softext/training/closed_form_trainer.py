"""A Trainer whose training is one pass over the data and a linear solve."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint, speed_metrics

from hf_softext.adapters.snnk.closed_form import ClosedFormFit, collect, install
from hf_softext.adapters.snnk.feature_pass import FeaturePass, targets_of
from hf_softext.adapters.snnk.head import SnnkHead
from hf_softext.functional.ridge import check_ridge
from hf_softext.training.closed_form_card import write_closed_form_card
from hf_softext.training.closed_form_state import PassFile, weights_digest
from hf_softext.training.processes import check_joined


class ClosedFormHeadTrainer(Trainer):
    r"""Fits the output layer of a model in closed form, see `fit_closed_form`.

        model.classifier = SnnkHead(model.config.hidden_size, model.config.num_labels)
        ClosedFormHeadTrainer(model=model, args=args, train_dataset=dataset).train()

    `train` takes one pass, without gradients, in which each process takes its share of the rows;
    solves; saves `checkpoint-<steps>`, complete or not at all, with `snnk_head.json`,
    `snnk_head.safetensors` and a README that says how to load them where the head is an `SnnkHead`;
    and evaluates, unless `eval_strategy` is "no". Epochs, learning rate, accumulation and the order
    of the rows do not matter to the result and are not used.

    With `save_strategy="steps"` the sums are kept every `save_steps` batches; a pass that was
    broken off goes on from there with `train(resume_from_checkpoint=True)`. They take 8 (R + 1)²
    bytes for each process.

    Args:
        *args: as for the Trainer.
        ridge: $\lambda$, 1e-3.
        relative: $\lambda$ is ridge times the mean variance of a feature, summed over rows; True.
        head: the output layer; None: the last linear one that is called.
        **kwargs: as for the Trainer.

    Raises:
        ValueError: a ridge below 0, or arguments of the Trainer that a single pass over all rows of
            a whole model cannot follow; see `fit_closed_form` for what is wrong with data.

    Notes:
        The loss, in training and in evaluation, is squared error, as that is what is minimised: the
        outputs estimate probabilities, and their cross-entropy would mean nothing.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225.
    """

    def __init__(
        self,
        *args: Any,
        ridge: float = 1e-3,
        relative: bool = True,
        head: nn.Linear | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_joined(self.args)
        check_ridge(ridge)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "a closed form needs the whole model in each process: leave FSDP and DeepSpeed "
                "out, nothing is trained that would need memory."
            )
        if self.train_dataset is not None and not hasattr(self.train_dataset, "__len__"):
            raise ValueError(
                "train_dataset has no length: a single pass over a stream is what fit_closed_form "
                "takes."
            )
        if self.args.max_steps > 0:
            raise ValueError(
                f"max_steps={self.args.max_steps}: a closed form takes each row once. For fewer "
                "rows give train_dataset.select(range(...))."
            )
        if self.args.dataloader_drop_last:
            raise ValueError("dataloader_drop_last=True would leave rows out: set it to False.")
        self.ridge, self.relative, self.head = ridge, relative, head
        self.fit: ClosedFormFit | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """One pass, a solve, a checkpoint, and an evaluation where there is to be one.

        Args:
            resume_from_checkpoint: True: the checkpoint in `output_dir`, which is complete, or the
                sums of a pass that was broken off; a path: that checkpoint.
            trial: is not used.
            ignore_keys_for_eval: as for the Trainer.

        Returns:
            Number of batches of a process, mean squared error on the training rows, metrics.

        Raises:
            ValueError: nothing to resume from.
        """
        args, output = self.args, Path(str(self.args.output_dir))
        model: Any = self.model
        if resume_from_checkpoint:
            done = resume_from_checkpoint
            if done is True:
                done = get_last_checkpoint(str(output)) if output.exists() else None
            if done:
                return self._take_up(str(done), ignore_keys_for_eval)
        start = time.time()
        self.is_in_train = True
        if self.place_model_on_device:
            self._move_model_to_device(model, args.device)
        loader = self.get_train_dataloader()
        steps = len(loader)
        self._begin(loader, steps)
        file = PassFile(output, args.process_index, self._request(model))
        resumed = file.load() if resume_from_checkpoint else None
        if resume_from_checkpoint and not any(gather_object([resumed is not None])):
            raise ValueError(f"{output} has no checkpoint and no sums to resume from.")

        def after_batch(number: int, run: FeaturePass) -> None:
            self.state.global_step, self.state.epoch = number, number / steps
            handler = self.callback_handler
            self.control = handler.on_step_end(args, self.state, self.control)
            if self.control.should_save and number < steps:
                file.save(str(run.name), number, run.tensors())
            # once set, a callback expects it to be taken back
            self.control.should_save = False

        with self.compute_loss_context_manager():
            sums, layer = collect(
                model,
                loader,
                head=self.head,
                labels=self.label_names[0] if self.label_names else "labels",
                progress=False,
                ridge=self.ridge,
                resumed=resumed,
                keep=after_batch,
            )
        self.fit = install(layer, sums, self.ridge, self.relative)
        self.state.global_step, self.state.epoch = steps, 1.0
        metrics: dict[str, Any] = speed_metrics("train", start, num_samples=self.fit.rows)
        metrics["train_loss"] = self.fit.mean_squared_error
        self.is_in_train = False
        asked = {"ridge": self.ridge, "relative": self.relative, "rows": self.fit.rows}
        self.log({**metrics, **asked})
        folder = output / f"checkpoint-{steps}"
        if args.save_strategy != "no":
            self._publish(folder)
        file.remove()
        self._evaluate_once(folder, ignore_keys_for_eval)
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        return TrainOutput(steps, self.fit.mean_squared_error, metrics)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Squared error, mean over rows and outputs."""
        rest = dict(inputs)
        labels = rest.pop(self.label_names[0] if self.label_names else "labels")
        outputs = model(**rest)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        rows, y, _ = targets_of(logits, labels, logits.shape[-1])
        loss = F.mse_loss(rows.float(), y.float())
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # sums do not depend on the order, and this one is the same when a pass goes on
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(data)

    def _request(self, model: nn.Module) -> dict[str, Any]:
        """What must be the same for a pass to go on."""
        args = self.args
        data: Any = self.train_dataset
        return {
            "rows": len(data),
            "data": str(getattr(data, "_fingerprint", "")),
            "weights": weights_digest(model),
            "head": next((name for name, one in model.named_modules() if one is self.head), ""),
            "batch": args.train_batch_size,
            "processes": args.world_size,
        }

    def _begin(self, loader: Any, steps: int) -> None:
        args = self.args
        self.state = TrainerState(
            max_steps=steps,
            num_train_epochs=1,
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
        )
        self.state.compute_steps(args, steps)
        handler: Any = self.callback_handler
        handler.train_dataloader = loader
        self.control = handler.on_train_begin(args, self.state, self.control)

    def _publish(self, folder: Path) -> None:
        """Have a whole checkpoint appear at once."""
        staged = folder.with_name(f"{folder.name}.partial")
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
        self.save_model(str(staged), _internal_call=True)
        if self.args.should_save:
            # a pickle, of what the caller knows
            (staged / "training_args.bin").unlink(missing_ok=True)
            model: Any = self.model
            heads = [found for found in model.named_modules() if isinstance(found[1], SnnkHead)]
            if len(heads) == 1:
                place, head = heads[0]
                head.save_pretrained(staged)
                fit = self.fit
                if fit is not None:
                    about = {"rows": fit.rows, "ridge": self.ridge, "error": fit.mean_squared_error}
                    write_closed_form_card(staged, folder.name, model, place, **about)
            self._write_state(staged)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staged, folder)
        self.accelerator.wait_for_everyone()
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _write_state(self, folder: Path) -> None:
        staged = folder / f"{TRAINER_STATE_NAME}.tmp"
        self.state.save_to_json(str(staged))
        os.replace(staged, folder / TRAINER_STATE_NAME)

    def _evaluate_once(self, folder: Path, ignore_keys: list[str] | None) -> None:
        if self.args.eval_strategy == "no":
            return
        self.evaluate(ignore_keys=ignore_keys)
        if self.args.save_strategy != "no" and self.args.should_save:
            self._write_state(folder)

    def _take_up(self, checkpoint: str, ignore_keys: list[str] | None) -> TrainOutput:
        """A pass that was finished needs no other."""
        path = Path(checkpoint, TRAINER_STATE_NAME)
        if not path.is_file():
            raise ValueError(f"resume_from_checkpoint={checkpoint!r} has no {TRAINER_STATE_NAME}.")
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        found = [line for line in history if "train_loss" in line and "ridge" in line]
        if not found:
            raise ValueError(
                f"{checkpoint} is a checkpoint of another Trainer: start without "
                "resume_from_checkpoint."
            )
        line = found[-1]
        if (line["ridge"], line["relative"]) != (self.ridge, self.relative):
            raise ValueError(
                f"{checkpoint} was fitted with ridge={line['ridge']}, relative={line['relative']}, "
                f"not {self.ridge} and {self.relative}: start without resume_from_checkpoint."
            )
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(path))
        loss = line["train_loss"]
        self.fit = ClosedFormFit(line["rows"], loss)
        # a run that was broken off after its checkpoint
        if not any(key.startswith("eval_") for one in history for key in one):
            self._evaluate_once(Path(checkpoint), ignore_keys)
        return TrainOutput(self.state.global_step, loss, {"train_loss": loss})
