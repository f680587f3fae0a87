"""Training on inputs that are perturbed to do harm."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainingArguments

from hf_softext.functional.projected_ascent import NORMS
from hf_softext.training.attack import InputAttack
from hf_softext.training.problem import bare
from hf_softext.training.softext_arguments import SoftextArguments
from hf_softext.training.softext_trainer import SoftextTrainer


@dataclass
class AdversarialArguments(SoftextArguments):
    """The fields that `AdversarialTrainingArguments` adds, for other arguments to take in."""

    loss: str = field(
        default="adv_comp_sum", metadata={"help": "Loss by name: adv_comp_sum or dr_irat."}
    )
    attack_steps: int = field(default=3, metadata={"help": "Steps of the attack on each batch."})
    attack_size: float = field(
        default=0.1,
        metadata={
            "help": "How far an input may be moved: the embedding of each token of a text, or the "
            "pixel values of an image as the model gets them."
        },
    )
    attack_step_size: float | None = field(
        default=None, metadata={"help": "By default 2.5 times attack_size, divided by the steps."}
    )
    attack_norm: str = field(
        default="l2", metadata={"help": "How it is measured: l2, or linf for each number alone."}
    )

    def check_attack(self) -> None:
        """Raise ValueError for a value that is out of range."""
        for name in ("attack_steps", "attack_size", "attack_step_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be above 0, and finite.")
        if self.attack_norm not in NORMS:
            raise ValueError(f"attack_norm={self.attack_norm!r} must be one of {', '.join(NORMS)}.")


@dataclass
class AdversarialTrainingArguments(AdversarialArguments, TrainingArguments):
    """`TrainingArguments` with a loss on perturbed inputs, and the attack that perturbs them.

    args = AdversarialTrainingArguments(output_dir="out", loss="dr_irat", attack_size=0.2)
    """


class AdversarialTrainer(SoftextTrainer):
    r"""Gives `adv_comp_sum` and `dr_irat` the logits of inputs that an attack has perturbed.

    Projected gradient ascent moves the token embeddings of a text model, each within a ball of its
    own, or the pixel values of an image as a whole, so that `loss.attack_objective` grows. A
    second forward pass with what it found gives `perturbed_logits`, and parameters their gradient.

    Args:
        *args: as for `SoftextTrainer`; `args` must have the fields of `AdversarialArguments`.
        **kwargs: as for `SoftextTrainer`.

    Raises:
        ValueError: a loss that takes no perturbed inputs, an attack that is out of range, or FSDP,
            DeepSpeed, DataParallel or torch_compile.

    Notes:
        A step costs `attack_steps` + 3 forward and `attack_steps` + 2 backward passes.

        The attack sees the model in evaluation mode. The second forward pass drops the same units
        as the first, so that the two differ by the perturbation alone. Pixel values are not kept in
        the range of an image, which only the image processor knows.

        Where the attack on a row starts depends on `seed`, on the optimizer step and on the place
        of the row in it: not on how the step is cut into micro-batches (where texts are padded to
        the same length) or processes, nor on an interruption.

        In evaluation nothing is attacked; `robust_accuracy` does.

    Reference:
        A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards Deep Learning Models
        Resistant to Adversarial Attacks", 2017, arXiv 1706.06083. On embeddings: T. Miyato, A. M.
        Dai, I. Goodfellow, "Adversarial Training Methods for Semi-Supervised Text Classification",
        2016, arXiv 1605.07725.
    """

    provides: frozenset[str] = SoftextTrainer.provides | {"perturbed_logits"}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        given: Any = self.args
        if not hasattr(given, "check_attack"):
            raise ValueError(
                f"args is a {type(given).__name__}: AdversarialTrainer needs "
                "AdversarialTrainingArguments, or others that take AdversarialArguments in."
            )
        given.check_attack()
        if "perturbed_logits" not in self.loss.needs:
            raise ValueError(
                f"loss {self.loss.name!r} takes no perturbed inputs: use 'adv_comp_sum' or "
                "'dr_irat', which is plain adversarial training for a large r."
            )
        several = self.is_fsdp_enabled or self.is_deepspeed_enabled or given.n_gpu > 1
        if several or given.torch_compile:
            raise ValueError(
                "AdversarialTrainer does not work with FSDP, DeepSpeed, DataParallel or "
                "torch_compile: use one process for each device, as accelerate launch does."
            )
        model: Any = self.model
        self._attack = InputAttack(
            model,
            steps=given.attack_steps,
            size=given.attack_size,
            step_size=given.attack_step_size,
            norm=given.attack_norm,
            seed=given.seed,
        )
        # micro-batches of this optimizer step that were attacked
        self._attacked = 0
        self._random: list[Tensor] = []

    def call_model_init(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the attack is on the new model."""
        model = super().call_model_init(*args, **kwargs)
        if hasattr(self, "_attack"):
            self._attack.model = bare(model)
        return model

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; with the batches of an optimizer step, it begins."""
        self._attacked = 0
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As `SoftextTrainer`; remembers where the random numbers of the forward pass begin."""
        if model.training:
            self._random = _random_state(self.args.device)
        return super().compute_loss(model, *args, **kwargs)

    def more_extras(
        self, model: nn.Module, inputs: dict[str, Any], outputs: Any, labels: Tensor
    ) -> dict[str, Any]:
        """The perturbed logits, in training."""
        found = super().more_extras(model, inputs, outputs, labels)
        if not model.training:
            return found
        objective: Any = self.loss.attack_objective
        place = self._attacked * self.args.world_size + self.args.process_index
        self._attacked += 1
        delta = self._attack.find(
            self.accelerator.unwrap_model(model),
            inputs,
            lambda logits, perturbed: objective(logits, labels, perturbed),
            _rows(self.state.global_step, place * self._train_batch_size, labels),
        )
        with _repeated(self._random, self.args.device):
            perturbed = self._attack.forward(model, inputs, delta)
        return {**found, "perturbed_logits": perturbed["logits"]}

    def robust_accuracy(self, dataset: Any = None) -> float:
        """The share of rows that are classified rightly under attack, which raises cross-entropy.

        Args:
            dataset: by default `eval_dataset`.
        """
        model = self.accelerator.unwrap_model(self.model).eval()
        results = []
        for index, batch in enumerate(self.get_eval_dataloader(dataset)):
            labels, _, inputs = self._split(self._prepare_inputs(batch))
            labels = labels.masked_fill(labels == self.loss.ignore_index, -100)
            place = index * self.args.world_size + self.args.process_index
            rows = _rows("evaluation", place * self.args.eval_batch_size, labels)
            delta = self._attack.find(model, inputs, _cross_entropy(labels), rows)
            with torch.no_grad():
                logits = self._attack.forward(model, inputs, delta)["logits"]
            right = (logits.argmax(-1) == labels).float()
            found = right.masked_fill(labels == -100, torch.nan)
            results.append(self.accelerator.gather_for_metrics(found))
        return torch.cat(results).nanmean().item()


def _cross_entropy(labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """To be raised by an attack; the first logits do not matter to it."""
    return lambda _, perturbed: F.cross_entropy(perturbed, labels, reduction="sum")


def _rows(step: int | str, first: int, labels: Tensor) -> list[str]:
    """Names of the rows of a micro-batch: the same however an optimizer step is cut."""
    return [f"{step} {first + row}" for row in range(len(labels))]


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the CPU, and of the device if it is another."""
    found = [torch.get_rng_state()]
    if device.type != "cpu":
        found.append(torch.get_device_module(device).get_rng_state(device))
    return found


@contextmanager
def _repeated(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Within, random numbers are those after `state`; afterwards as if none had been drawn."""
    before = _random_state(device)
    try:
        _set_random_state(state, device)
        yield
    finally:
        _set_random_state(before, device)


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1], device)
