"""The whole adoption of a text model: load, swap, distil, measure, save."""

import json
import os
import shutil
import warnings
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedModel

from hf_softext.attention.apply import apply_attention
from hf_softext.attention.record import BLOCK
from hf_softext.attention.verify import verify_attention
from hf_softext.catalog import find
from hf_softext.data.texts import read_texts
from hf_softext.training.adoption.scale import calibrate_scale
from hf_softext.training.adoption.trainer import AdoptionArguments, AdoptionTrainer, EaseIn
from hf_softext.training.checkpoints import (
    TRAINING_IDENTITY,
    check_new,
    claim,
    needed,
    publish,
    train_to_end,
)
from hf_softext.training.model_card import write_adoption_card
from hf_softext.training.pretrained import pretrained_class
from hf_softext.version import __version__

# what makes two runs the same, so that one can continue the other
_IDENTITY = [
    "model",
    "attention",
    "parameters",
    "data",
    "column",
    "max_length",
    "anneal",
    "freeze_embeddings",
    *TRAINING_IDENTITY,
]


@dataclass(frozen=True)
class AdoptionResult:
    """What an adoption reached.

    Attributes:
        folder: the checkpoint.
        before: cosine of the mean-pooled last hidden states to the original's on held-out text,
            after the bare swap.
        after: the same after adoption.
        log: the Trainer's log, one dict a line.
    """

    folder: Path
    before: float
    after: float
    log: list[dict[str, float]]


def adopt(args: AdoptionArguments) -> AdoptionResult:
    """Teach a pretrained text model to compute under a new attention what it computed before.

    Work in progress lies in `<output_dir>.partial`; a run that was interrupted continues there
    when it is started again with the same arguments. `output_dir` appears at the end, complete, by
    a rename.

    Args:
        args: `model`, `attention`, `data` and `output_dir` say what; the rest has defaults.

    Returns:
        Where the checkpoint is and how well it agrees with the original.

    Raises:
        ValueError: an argument that is missing or wrong, a model that ignores its attention
            implementation, or a partial run with other arguments.
        FileExistsError: `output_dir` is there already.
    """
    final, work = Path(args.output_dir or ""), Path(f"{args.output_dir}.partial")
    row = find(needed(args, "attention"), "attention")
    method = row.load()
    parameters = method.resolve(args.method_parameters())
    texts = read_texts(Path(needed(args, "data")), args.column)
    source = needed(args, "model")
    needed(args, "output_dir")
    check_new(final)
    args = copy(args)
    args.output_dir = str(work)

    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    teacher, student = load_text_model(source), load_text_model(source)
    with warnings.catch_warnings():
        # the swap is the point here
        warnings.simplefilter("ignore", UserWarning)
        apply_attention(student, row.name, **{k: v for k, v in parameters.items() if v is not None})
    report = verify_attention(student)
    if report.bypassed:
        warnings.warn(
            f"{source}: {report}; what they compute stays as it is.", UserWarning, stacklevel=2
        )

    with args.main_process_first(desc="tokenizing"):
        claim(work, args, _IDENTITY)
        rows = _tokenize(texts, tokenizer, args.max_length)
    held_out = min(100, max(1, len(rows) // 20))
    split = (
        rows.train_test_split(test_size=held_out, seed=0)
        if len(rows) > 1
        else {"train": rows, "test": rows}
    )
    use_cache = getattr(student.config, "use_cache", None)
    trainer = AdoptionTrainer(
        model=student,
        teacher=teacher,
        args=args,
        train_dataset=split["train"],
        data_collator=_collator(tokenizer, student.config.is_encoder_decoder),
        processing_class=tokenizer,
    )
    # what the bare swap does, with the method's own scale
    before = trainer.agreement(split["test"])
    if args.calibrate_scale:
        modules = [student.get_submodule(name) for name in report.reached]
        parameters = calibrate_scale(student, method, parameters, modules, trainer.sample_loss)
    if method.start and args.anneal > 0:
        trainer.add_callback(EaseIn(method, parameters, share=args.anneal))
    train_to_end(trainer, work)
    after = trainer.agreement(split["test"])

    if use_cache is not None:
        student.config.use_cache = use_cache
    if trainer.is_world_process_zero():
        staged = work / "final"
        shutil.rmtree(staged, ignore_errors=True)
        nn.Module.to(student, dtype=_stored_dtype(source))
        student.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        facts = {
            "model_class": type(student).__name__,
            "folder": final.name,
            "source": Path(source).name if os.path.isdir(source) else source,
            "base_model": "" if os.path.isdir(source) else f"base_model: {source}\n",
            "and_logits": ", then logits" if student.can_generate() else "",
            "before": before,
            "after": after,
            "block": json.dumps(getattr(student.config, BLOCK)),
            "steps": args.max_steps,
            "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "learning_rate": args.learning_rate,
            "examples": len(split["train"]),
            "held_out": len(split["test"]),
            "data": Path(args.data or "").name,
            "version": __version__,
            "transformers_version": transformers.__version__,
            "torch_version": torch.__version__,
        }
        write_adoption_card(staged, row, facts)
        publish(staged, final, work)
    trainer.accelerator.wait_for_everyone()
    return AdoptionResult(final, before, after, trainer.state.log_history)


def load_text_model(source: str) -> PreTrainedModel:
    """Load a checkpoint in float32 as the class that it names, which must be one of transformers'
    own.

    Raises:
        ValueError: it names no class of transformers.
    """
    model_class = pretrained_class(source, AutoConfig.from_pretrained(source))
    return model_class.from_pretrained(source, dtype=torch.float32)


def _tokenize(texts: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    return texts.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=max_length),
        batched=True,
        remove_columns=texts.column_names,
        desc="tokenizing",
    )


def _collator(tokenizer: Any, is_encoder_decoder: bool) -> Any:
    pad = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(pad(rows))
        if is_encoder_decoder:
            batch["decoder_input_ids"] = batch["input_ids"]
            batch["decoder_attention_mask"] = batch["attention_mask"]
        return batch

    return collate


def _stored_dtype(source: str) -> torch.dtype:
    dtype = AutoConfig.from_pretrained(source).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
