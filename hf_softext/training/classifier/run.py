"""The whole training of a text classifier: read, train with a loss by name, test, save."""

import json
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    set_seed,
)

from hf_softext.catalog import find
from hf_softext.data.labelled import Labels, find_labels, read_labelled
from hf_softext.training.causal_lm.model import describe_source, set_attention
from hf_softext.training.checkpoints import (
    TRAINING_IDENTITY,
    check_new,
    claim,
    needed,
    publish,
    train_to_end,
)
from hf_softext.training.classifier.arguments import ClassifierArguments
from hf_softext.training.classifier.card import write_classifier_card
from hf_softext.training.classifier.scores import classification_scores
from hf_softext.training.loss_state import forget_loss
from hf_softext.training.model_hook import ModelHook
from hf_softext.training.softext_trainer import SoftextTrainer
from hf_softext.version import __version__

RESULTS = "eval_results.json"

# what makes two runs the same, so that one can continue the other, as far as a run has it
_IDENTITY = [
    "model",
    "teacher",
    "aux_head",
    "align_gradients",
    "adapter",
    "adapter_kwargs",
    "quantization",
    "data",
    "data_config",
    "test_data",
    "text_column",
    "label_column",
    "held_out",
    "max_length",
    "attention",
    "attention_parameters",
    "freeze_encoder",
    *TRAINING_IDENTITY,
]


@dataclass(frozen=True)
class ClassifierResult:
    """What a training reached.

    Attributes:
        folder: the checkpoint.
        scores: on the test set, see `classification_scores`.
        log: the Trainer's log, one dict a line.
    """

    folder: Path
    scores: dict[str, float]
    log: list[dict[str, float]]

    def summary(self) -> str:
        """The scores, and where the checkpoint is."""
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        return f"{scores}\nsaved in {self.folder}"


def train_classifier(
    args: ClassifierArguments,
    make_trainer: Callable[..., SoftextTrainer] = SoftextTrainer,
    hook: ModelHook | None = None,
) -> ClassifierResult:
    """Train a text classifier with a loss by name.

    Work in progress lies in `<output_dir>.partial`; a run that was interrupted continues there
    when it is started again with the same arguments. `output_dir` appears at the end, complete, by
    a rename: the model, its tokenizer, a model card, and `eval_results.json`.

    Args:
        args: `model`, `data` and `output_dir` say what; the rest has defaults. Where they have a
            `teacher`, its classes decide the order of the labels.
        make_trainer: what is called for a Trainer, with the keywords of `SoftextTrainer`.
        hook: what else is done with the model; by default nothing.

    Returns:
        Where the checkpoint is and how it scored.

    Raises:
        ValueError: an argument that is missing or wrong, labels that do not fit, a loss for
            another kind of problem, or a partial run with other arguments.
        FileNotFoundError: no such data.
        FileExistsError: `output_dir` is there already.
    """
    final, work = Path(needed(args, "output_dir")), Path(f"{args.output_dir}.partial")
    source, hook = needed(args, "model"), hook or ModelHook()
    args.check()
    find(args.loss, "loss")
    check_new(final)
    args = copy(args)
    args.output_dir = str(work)

    with args.main_process_first(desc="reading the data"):
        train, test = _read(args)
        tokenizer = AutoTokenizer.from_pretrained(source)
        labels = _labels(getattr(args, "teacher", None) or source, train)
        rows, held_out = (_encode(part, tokenizer, labels, args) for part in (train, test))

    def own_work() -> None:
        with args.main_process_first(desc="claiming the work folder"):
            claim(work, args, _IDENTITY)

    source = hook.source(args, tokenizer, train, own_work)
    set_seed(args.seed)
    model, stored = _build(args, source, labels, hook)
    own_work()
    trainer = make_trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda found: classification_scores(
            found.predictions, found.label_ids, labels.kind
        ),
    )
    train_to_end(trainer, work)
    scores = {
        name.removeprefix("eval_"): value
        for name, value in trainer.evaluate().items()
        if not name.startswith(("eval_runtime", "eval_samples", "eval_steps", "epoch"))
    }

    result = ClassifierResult(final, scores, trainer.state.log_history)
    torch.nn.Module.to(model, dtype=stored)
    staged = work / "final"
    if trainer.is_world_process_zero():
        shutil.rmtree(staged, ignore_errors=True)
    trainer.save_model(str(staged))
    if trainer.is_world_process_zero():
        # a pickle that says nothing the card does not
        (staged / "training_args.bin").unlink(missing_ok=True)
        forget_loss(staged)
        facts = hook.facts(_facts(args, trainer, labels, len(train), len(test)))
        content = json.dumps({**facts, "scores": scores}, indent=2)
        (staged / RESULTS).write_text(content + "\n", encoding="utf-8")
        hook.write_card(write_classifier_card, staged, final, facts, scores)
        publish(staged, final, work)
    trainer.accelerator.wait_for_everyone()
    return result


def _read(args: ClassifierArguments) -> tuple[Dataset, Dataset]:
    common = {"text": args.text_column, "label": args.label_column}
    rows = read_labelled(needed(args, "data"), config=args.data_config, **common)
    if args.test_data is not None:
        other = None if Path(args.test_data).suffix else args.data_config
        return rows, read_labelled(args.test_data, config=other, split="test", **common)
    parts = rows.train_test_split(test_size=args.held_out, seed=args.seed)
    return parts["train"], parts["test"]


def _labels(source: str, train: Dataset) -> Labels:
    """Those of the data; in the order of the model's, where it has the same."""
    found = find_labels(train["label"])
    known = dict(AutoConfig.from_pretrained(source).id2label or {})
    names = tuple(str(name) for _, name in sorted(known.items()))
    same = sorted(names) == sorted(found.names)
    return Labels(found.kind, names) if same else found


def _encode(rows: Dataset, tokenizer: Any, labels: Labels, args: ClassifierArguments) -> Dataset:
    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        found = tokenizer(batch["text"], truncation=True, max_length=args.max_length)
        found["labels"] = [labels.encode(one) for one in batch["label"]]
        return dict(found)

    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def _build(
    args: ClassifierArguments, source: str, labels: Labels, hook: ModelHook
) -> tuple[Any, torch.dtype]:
    """The model on its attention, in float32, and the dtype to save it in."""
    stored = AutoConfig.from_pretrained(source).dtype
    names = dict(enumerate(labels.names)) or {0: "LABEL_0"}
    model = hook.load(
        AutoModelForSequenceClassification,
        source,
        num_labels=len(names),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        problem_type=labels.kind,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
    )
    set_attention(model, args.attention, args.method_parameters())
    if args.freeze_encoder:
        model.base_model.requires_grad_(False)
    return hook.wrap(model, stored if isinstance(stored, torch.dtype) else torch.float32)


def _facts(
    args: ClassifierArguments, trainer: Any, labels: Labels, train: int, test: int
) -> dict[str, Any]:
    """What was done, for the results and the card."""
    source, teacher = needed(args, "model"), getattr(args, "teacher", None)
    taught = f", taught by {describe_source(teacher)}" if teacher else ""
    return {
        "source": describe_source(source) + taught,
        "base_model": None if Path(source).exists() else source,
        "attention": trainer.accelerator.unwrap_model(trainer.model).config._attn_implementation,
        "loss": trainer.loss.config(),
        "problem": labels.kind,
        "classes": len(labels.names),
        "data": describe_source(args.data or ""),
        "test_data": describe_source(args.test_data or args.data or ""),
        "train_rows": train,
        "test_rows": test,
        "frozen": args.freeze_encoder,
        "steps": trainer.state.global_step,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "device": args.device.type,
        "hf_softext": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
