"""The whole training of a text classifier by another one."""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from hf_softext.training.checkpoints import needed
from hf_softext.training.classifier.arguments import ClassifierArguments
from hf_softext.training.classifier.run import ClassifierResult, train_classifier
from hf_softext.training.distillation import DistillationTrainer
from hf_softext.training.softext_trainer import SoftextTrainer


@dataclass
class DistilledArguments(ClassifierArguments):
    """`ClassifierArguments`, and a teacher.

    `model`, `teacher`, `data` and `output_dir` are needed.
    """

    loss: str = field(default="kd", metadata={"help": "Loss by name: kd or dhkd."})
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Classifier that teaches: a folder or a hub id; with the model's tokenizer."
        },
    )
    aux_head: str = field(
        default="linear", metadata={"help": "Second head of dhkd: linear or mlp."}
    )
    align_gradients: bool = field(
        default=False,
        metadata={"help": "Keep the teacher of dhkd from undoing what the labels ask for."},
    )


def train_distilled(args: DistilledArguments) -> ClassifierResult:
    """Train a text classifier with labels and with the answers of a teacher.

    As `train_classifier` in all else. Labels are numbered as the teacher numbers its classes.

    Args:
        args: `model`, `teacher`, `data` and `output_dir` say what; the rest has defaults.

    Returns:
        Where the checkpoint is and how it scored.

    Raises:
        ValueError: as `train_classifier`; a teacher that is no classifier, has another tokenizer,
            or has other classes than the data.
    """
    source = needed(args, "teacher")
    architectures = AutoConfig.from_pretrained(source).architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(
            f"teacher={source!r} is a {', '.join(architectures) or 'model without a head'}, not a "
            "text classifier: train it first, with softext train classifier."
        )
    vocabularies = [
        AutoTokenizer.from_pretrained(name).get_vocab() for name in (source, needed(args, "model"))
    ]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"teacher={source!r} has another vocabulary than model={args.model!r}, and both read "
            "the same tokens: choose models with one tokenizer."
        )
    teacher = AutoModelForSequenceClassification.from_pretrained(source)

    def make_trainer(model: Any, **given: Any) -> SoftextTrainer:
        _check_names(teacher.config, model.config)
        return DistillationTrainer(
            model=model,
            teacher=teacher,
            aux_head=args.aux_head,
            align_gradients=args.align_gradients,
            **given,
        )

    return train_classifier(args, make_trainer)


def _check_names(theirs: Any, own: Any) -> None:
    """Raise ValueError where the order of the teacher's classes could only be guessed."""
    names = [own.id2label[index] for index in range(own.num_labels)]
    unnamed = str(theirs.id2label[0]).startswith("LABEL_")
    classes = own.problem_type != "regression"
    if unnamed and classes and names != [str(index) for index in range(own.num_labels)]:
        raise ValueError(
            f"the teacher's classes have no names, and those of the data are {', '.join(names)}: "
            "write id2label into the teacher's config.json, or number the labels from 0."
        )
