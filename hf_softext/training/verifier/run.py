"""The whole fit of an SDM head behind a model: read, fit, measure, explain, save."""

import json
import math
import shutil
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from transformers import AutoConfig

from hf_softext.heads.backbone import backbone, backbone_fingerprint, default_pooling
from hf_softext.heads.sdm.diagnosis import (
    Diagnosis,
    EmptyRegionWarning,
    diagnose,
    least_similarity,
    region_words,
)
from hf_softext.heads.sdm.head import SdmHead
from hf_softext.heads.sdm.model import SdmForSequenceClassification
from hf_softext.heads.sdm.rows import check_counts, check_labels
from hf_softext.heads.sdm.verifier import POOLING, check_decoder, check_flags, positions
from hf_softext.heads.token_rows import token_rows
from hf_softext.training.causal_lm.model import describe_source, load_tokenizer
from hf_softext.training.checkpoints import check_new, claim, needed, publish
from hf_softext.training.training_report import REPORT, check_report
from hf_softext.training.verifier.arguments import SETTINGS, VerifierArguments
from hf_softext.training.verifier.card import write_head_card
from hf_softext.training.verifier.data import Columns, LabelledRows, read_rows
from hf_softext.training.verifier.features import shared_features
from hf_softext.training.verifier.judged import Judged, judge_rows
from hf_softext.training.verifier.model import load_backbone
from hf_softext.version import __version__

RESULTS = "eval_results.json"

# what makes two runs the same, so that one can continue the other
_IDENTITY = [
    "model",
    "tokenizer",
    "data",
    "data_config",
    "test_data",
    "held_out",
    "task",
    "text_column",
    "label_column",
    "prompt_column",
    "completion_column",
    "good_column",
    "pooling",
    "layers",
    "max_length",
    "feature_batch_size",
    "dtype",
    "keep_texts",
    *SETTINGS,
]


@dataclass(frozen=True)
class VerifierResult:
    """What a fit reached.

    Attributes:
        folder: the head.
        head: the same in memory.
        judged: what it says of the rows that are measured on; None without such.
        diagnosis: which class is the hardest, and what another alpha would do.
    """

    folder: Path
    head: SdmHead
    judged: Judged | None
    diagnosis: Diagnosis

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """`Judged.scores`, None in place of NaN; empty without rows to measure on."""
        if self.judged is None:
            return {}
        return {
            name: {key: None if math.isnan(one) else one for key, one in found.items()}
            for name, found in self.judged.scores(self.head.config.alpha).items()
        }

    def summary(self) -> str:
        """The region, the scores and the place, a line each."""
        alpha = self.head.config.alpha
        lines = [f"{region_words(self.head)}, for an accuracy of {alpha:g} in every class"]
        if not self.diagnosis.admits:
            lines = self.diagnosis.sentences(alpha)
        count = 0 if self.judged is None else len(self.judged.wanted)
        for name, found in self.scores.items():
            accuracy = "-" if found["accuracy"] is None else f"{found['accuracy']:.4f}"
            share = f"{found['admitted']:.1%} of {count} held-out rows"
            lines.append(f"{name}: accuracy {accuracy} on {share}")
        return "\n".join([*lines, f"saved in {self.folder}"])


def fit_verifier(args: VerifierArguments) -> VerifierResult | None:
    """Fit an SDM head behind a frozen model, on labelled texts or on completions.

    Work in progress lies in `<output_dir>.partial`; a run that was broken off continues there when
    it is started again with the same arguments. `output_dir` appears at the end, complete, by a
    rename: the head, a model card, `eval_results.json`, and what `save_model` and `report` ask for.
    Under `accelerate launch` the processes share the model's passes over the rows, and need a file
    system in common; the head, which is small, is fitted by the first.

    Args:
        args: `model`, `data` and `output_dir` say what; the rest has defaults.

    Returns:
        The head, and how it did on rows that the fit has not seen; None on other processes than the
        first.

    Raises:
        ValueError: an argument that is missing or wrong, a missing column, labels that are no
            classes or all of one, completions that are all good or all bad, or a partial run with
            other arguments.
        FileNotFoundError: no such data.
        FileExistsError: `output_dir` is there already.
        ImportError: a report without matplotlib.

    Notes:
        Held-out rows are drawn from every class alike. Of these and of `test_data`, rows that the
        fit has too are left out; "repeated" in the results says how many.
    """
    final, work = Path(needed(args, "output_dir")), Path(f"{args.output_dir}.partial")
    source = needed(args, "model")
    args.check()
    check_report(args.report)
    check_new(final)
    state = PartialState(cpu=args.use_cpu)
    model_config = AutoConfig.from_pretrained(source)
    tokenizer = load_tokenizer(args.tokenizer, source)
    with state.main_process_first():
        task, train, given = _read(args, model_config, tokenizer)
    model = load_backbone(source, model_config, args.dtype, state)
    test = _unseen(train, given, tokenizer, model, args.max_length)
    # what can be wrong with the data is found before the folder is claimed, which would be in the
    # way of the command that is put right
    with state.main_process_first():
        claim(work, args, _IDENTITY)
    default = POOLING if task == "generation" else default_pooling(model)
    pooling = args.pooling or default
    try:
        features = shared_features(
            model,
            tokenizer,
            train.rows + test.rows,
            state,
            work / "features",
            pooling=pooling,
            layers=args.layers,
            batch_size=args.feature_batch_size,
            max_length=args.max_length,
            progress=not args.disable_tqdm,
        )
        if features is None:
            return None
        head = _fit(args, model, pooling, train, features[: len(train.rows)], work)
    except ValueError:
        # wrong after all, as where features are equal or not finite: nothing is to be continued
        if state.is_main_process and not (work / "fit").exists():
            shutil.rmtree(work, ignore_errors=True)
        raise
    judged, output = None, None
    if test.rows:
        judged, output = judge_rows(head, features[len(train.rows) :], test.labels)
    result = VerifierResult(final, head, judged, diagnose(head))
    # the card says the name of the folder that it lies in
    staged = work / "final" / final.name
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    if args.save_model:
        # a language model is one with or without its verifier, an encoder no classifier without
        whole = model if task == "generation" else SdmForSequenceClassification(model, head)
        whole.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    counts = len(train.rows), len(given.rows) - len(test.rows)
    facts = _facts(args, task, model, result, counts)
    write_head_card(staged, facts, result.scores, args.save_model)
    head.save_pretrained(staged)
    content = json.dumps({**facts, "scores": result.scores}, indent=2, allow_nan=False)
    (staged / RESULTS).write_text(content + "\n", encoding="utf-8")
    if args.report:
        from hf_softext.training.verifier.report import MeasuredRows, write_sdm_report

        shown = None
        if judged is not None:
            texts = [row["text"] for row in test.rows]
            shown = MeasuredRows(judged, output, texts, facts["test_data"])
        write_sdm_report(staged / REPORT, final.name, head, shown, facts)
    publish(staged, final, work)
    return result


def _read(
    args: VerifierArguments, model_config: Any, tokenizer: Any
) -> tuple[str, LabelledRows, LabelledRows]:
    """The task, rows to fit on, and rows to measure on."""
    columns = Columns(
        args.text_column,
        args.label_column,
        args.prompt_column,
        args.completion_column,
        args.good_column,
    )
    longest = args.max_length or positions(model_config)
    given: dict[str, Any] = {"tokenizer": tokenizer, "longest": longest}
    known = [str(name) for _, name in sorted((model_config.id2label or {}).items())]
    task, train = read_rows(
        needed(args, "data"),
        columns,
        args.task,
        config=args.data_config,
        split="train",
        known=known,
        **given,
    )
    if args.test_data is not None:
        other = None if Path(args.test_data).suffix else args.data_config
        _, test = read_rows(
            args.test_data,
            columns,
            task,
            config=other,
            split="test",
            names=train.names,
            **given,
        )
    else:
        train, test = train.held_out(args.held_out, args.seed)
    if task == "generation":
        check_decoder(model_config)
        check_flags([bool(one) for one in train.labels], len(train.labels))
        if args.pooling not in (None, POOLING):
            raise ValueError(f"pooling={args.pooling!r}: a generation is judged with {POOLING}.")
    return task, train, test


def _unseen(
    train: LabelledRows, test: LabelledRows, tokenizer: Any, model: Any, max_length: int | None
) -> LabelledRows:
    """Rows to measure on that are no rows of the fit, to the model: these would vouch for
    themselves. Raises ValueError where none is left, or a class has too few rows to fit on."""
    rows = token_rows(train.rows + test.rows, tokenizer, backbone(model), "text", max_length)
    count, classes = len(train.rows), len(train.names)
    first = rows.first_of_equal()
    names = dict(enumerate(train.names))
    labels = check_labels(train.labels, count, num_labels=classes, every_class=True, names=names)
    distinct = [place for place, number in enumerate(first[:count]) if place == number]
    check_counts(torch.bincount(labels[distinct], minlength=classes), names)
    kept = test.pick([place for place, number in enumerate(first[count:]) if number >= count])
    if test.rows and not kept.rows:
        raise ValueError(
            f"every one of the {len(test.rows)} rows to measure on is a row of the fit too: give "
            "other test_data, or held_out=0 for none."
        )
    return kept


def _fit(
    args: VerifierArguments,
    model: Any,
    pooling: str,
    train: LabelledRows,
    features: Tensor,
    work: Path,
) -> SdmHead:
    names = dict(enumerate(train.names))
    with warnings.catch_warnings():
        # the summary says it
        warnings.simplefilter("ignore", EmptyRegionWarning)
        return SdmHead.fit_features(
            features,
            train.labels,
            ids=train.ids,
            texts=[row["text"] for row in train.rows] if args.keep_texts else None,
            config=args.config(),
            work_dir=work / "fit",
            progress=not args.disable_tqdm,
            num_labels=len(names),
            id2label=names,
            pooling=pooling,
            layers=tuple(args.layers),
            max_length=args.max_length,
            backbone=backbone_fingerprint(model),
        )


def _facts(
    args: VerifierArguments,
    task: str,
    model: Any,
    result: VerifierResult,
    rows: tuple[int, int],
) -> dict[str, Any]:
    config, least = result.head.config, least_similarity(result.head)
    source = needed(args, "model")
    return {
        "task": task,
        "model": describe_source(source),
        "base_model": None if Path(source).exists() else source,
        "model_class": type(model).__name__,
        "data": describe_source(args.data or ""),
        "test_data": describe_source(args.test_data or args.data or ""),
        "train_rows": rows[0],
        "test_rows": 0 if result.judged is None else len(result.judged.wanted),
        "repeated": rows[1],
        "reasons": {} if result.judged is None else dict(Counter(result.judged.reasons or ())),
        "least_similarity": least if math.isfinite(least) else None,
        "highest_alpha": result.diagnosis.highest_alpha,
        "classes": [str(result.head.label_name(one)) for one in range(config.num_labels or 0)],
        "pooling": config.pooling,
        "layers": list(config.layers),
        "max_length": args.max_length,
        "dtype": args.dtype,
        **{name: getattr(config, name) for name in SETTINGS},
        "hf_softext": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
