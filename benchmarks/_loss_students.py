"""A teacher of six layers and students of two, trained whole on queries of CLINC150."""

import tempfile
from functools import cache
from typing import Any

import _loss_data as data
import torch
from _loss_fit import Contender, Plan, Result, Task, accuracy, correct, hits, share
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertModel,
    BertPreTrainedModel,
    DataCollatorWithPadding,
    TrainingArguments,
    logging,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_softext.demo.corpora import clinc150
from hf_softext.demo.sentence import minilm
from hf_softext.training.distillation import DistillationTrainer

# rows of each of the 150 intents: two cores, and some twenty students
TRAIN_ROWS, VAL_ROWS = 8, 8
TEACHER_LAYERS, STUDENT_LAYERS = 6, 2
STUDENT_PLAN, TEACHER_PLAN = Plan(0, 8, 32), Plan(0, 8, 32)
TEACHER, TEACHER_RATE, TEACHER_SEED = "the teacher itself, 6 layers", 5e-4, 0


class MeanClassifier(BertPreTrainedModel):
    """A linear layer on the mean of the states of the real tokens, for which MiniLM was trained.

    The first token's state, which BERT's own classifier reads, trains slowly or not at all on few
    rows.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits (N, C); the loss is the trainer's."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(states)
        logits = self.classifier((states * weight).sum(1) / weight.sum(1))
        return SequenceClassifierOutput(logits=logits)


@cache
def source() -> str:
    """The folder of the encoder that teacher and students begin as."""
    return minilm()


@cache
def queries() -> dict[str, Dataset]:
    """CLINC150 by split, tokenised; the first rows of each intent, all of the test."""
    tokenizer = AutoTokenizer.from_pretrained(source())
    whole, names = clinc150(), data.intents()
    found = {}
    for split, each in zip(data.SPLITS, (TRAIN_ROWS, VAL_ROWS, None), strict=True):
        seen: dict[str, int] = {}
        rows = []
        for query, intent in whole[split]:
            seen[intent] = seen.get(intent, 0) + 1
            if each is None or seen[intent] <= each:
                rows.append((query, names.index(intent)))
        given = tokenizer([query for query, _ in rows], truncation=True, max_length=32)
        found[split] = Dataset.from_dict({**given, "labels": [label for _, label in rows]})
    return found


def trained(
    layers: int, plan: Plan, loss: str, knobs: dict[str, Any], rate: float, seed: int, rows: Dataset
) -> DistillationTrainer:
    """A model that begins as the first layers of the encoder, its embeddings fixed, and learns."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = MeanClassifier.from_pretrained(
        source(), num_labels=len(data.intents()), num_hidden_layers=layers
    )
    # most of the weights, and most of them of words that do not occur
    model.bert.embeddings.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        learning_rate=rate,
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = DistillationTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(source())),
        loss=loss,
        loss_kwargs=knobs,
    )
    # the second head of dhkd has drawn numbers: order and dropout are those of all other losses
    torch.manual_seed(seed)
    trainer.train()
    return trainer


@torch.no_grad()
def answers(trainer: DistillationTrainer, rows: Dataset) -> Tensor:
    """Logits (N, C)."""
    model: Any = trainer.model
    model.eval()
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    found = torch.empty(len(rows), model.config.num_labels)
    collator: Any = trainer.data_collator
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        batch = collator([{k: v for k, v in rows[row].items() if k in INPUTS} for row in chosen])
        found[chosen] = model(**batch).logits
    return found


INPUTS = ("input_ids", "attention_mask")


def teacher() -> dict[str, Tensor]:
    """Logits (N, C) by split of one teacher, trained once on the rows that the students see."""
    plan = f"{TEACHER_PLAN}, rate {TEACHER_RATE}, seed {TEACHER_SEED}, rows {TRAIN_ROWS}"
    path = data.CACHE / f"teacher {plan}.safetensors".replace(" ", "_").replace(",", "")
    if not path.exists():
        parts = queries()
        trainer = trained(
            TEACHER_LAYERS, TEACHER_PLAN, "ce", {}, TEACHER_RATE, TEACHER_SEED, parts["train"]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".partial")
        save_file({name: answers(trainer, rows) for name, rows in parts.items()}, whole)
        whole.replace(path)
    return load_file(path)


def run_distillation(
    setting: int, contender: Contender, knobs: dict[str, Any], rate: float, seed: int
) -> dict[str, Result]:
    """A student of so many layers; what the teacher says is a column of the dataset."""
    parts = queries()
    labels = {name: torch.tensor(rows["labels"]) for name, rows in parts.items()}
    if contender.loss == TEACHER:
        said = teacher()
    else:
        rows = parts["train"]
        if contender.loss != "ce":
            rows = rows.add_column("teacher_logits", teacher()["train"].tolist())
        trainer = trained(setting, STUDENT_PLAN, contender.loss, knobs, rate, seed, rows)
        said = {name: answers(trainer, part) for name, part in parts.items()}
    right = hits(correct(said["test"], labels["test"]))
    score, own = (accuracy(said[name], labels[name]) for name in ("val", "train"))
    return {"accuracy": Result(score, right, own)}


RATES, MORE_RATES = (1e-3, 2e-3), (5e-4, 1e-3, 2e-3, 4e-3)
DISTILL = Task(
    settings={f"{STUDENT_LAYERS} layers of {TEACHER_LAYERS}": STUDENT_LAYERS},
    baseline="ce",
    contenders={
        "ce": Contender("ce", rates=MORE_RATES),
        "kd": Contender("kd", ({"alpha": 0.5}, {"alpha": 0.9}), RATES),
        "dhkd": Contender("dhkd", ({"alpha": 1.0}, {"alpha": 0.1}), RATES),
        TEACHER: Contender(TEACHER, rates=(TEACHER_RATE,)),
    },
    measures={"accuracy": share},
    run=run_distillation,
    plan=f"{STUDENT_PLAN}, rows {TRAIN_ROWS}",
)
