"""The whole training of a causal language model: read, build, train, test long, save."""

import json
import math
import shutil
import warnings
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import default_data_collator, set_seed

from hf_softext.attention.record import BLOCK
from hf_softext.data.texts import read_corpus
from hf_softext.training.causal_lm.arguments import CausalLMArguments
from hf_softext.training.causal_lm.data import Windows, WithPasskeys, split_stream, token_stream
from hf_softext.training.causal_lm.extrapolation import (
    PasskeyScore,
    loss_by_length,
    passkey_accuracy,
)
from hf_softext.training.causal_lm.model import (
    check_attention,
    default_length,
    describe_source,
    fresh_config,
    last_position,
    load_model,
    load_tokenizer,
    set_attention,
)
from hf_softext.training.causal_lm.passkey import PasskeyTask
from hf_softext.training.checkpoints import (
    TRAINING_IDENTITY,
    check_new,
    claim,
    needed,
    publish,
    train_to_end,
)
from hf_softext.training.loss_state import forget_loss
from hf_softext.training.model_card import write_causal_lm_card
from hf_softext.training.model_hook import ModelHook
from hf_softext.training.softext_trainer import SoftextTrainer
from hf_softext.version import __version__

RESULTS = "eval_results.json"

# what makes two runs the same, so that one can continue the other, as far as a run has it
_IDENTITY = [
    "model_type",
    "config",
    "model",
    "adapter",
    "adapter_kwargs",
    "quantization",
    "config_overrides",
    "tokenizer",
    "attention",
    "attention_parameters",
    "data",
    "data_config",
    "column",
    "length",
    "held_out",
    "passkey_share",
    *TRAINING_IDENTITY,
]


@dataclass(frozen=True)
class CausalLMResult:
    """What a training reached.

    Attributes:
        folder: the checkpoint.
        losses: nats per token on held-out text, for each length of window.
        passkeys: how often a hidden number was found, for each length and depth.
        log: the Trainer's log, one dict a line.
    """

    folder: Path
    losses: dict[int, float]
    passkeys: list[PasskeyScore]
    log: list[dict[str, float]]

    def summary(self) -> str:
        """What was measured, a line for each length, and where the checkpoint is."""
        lines = []
        for length, loss in self.losses.items():
            found = [score.accuracy for score in self.passkeys if score.length == length]
            passkey = f", passkey {sum(found) / len(found):.0%}" if found else ""
            lines.append(f"{length} tokens: loss {loss:.4f}{passkey}")
        return "\n".join([*lines, f"saved in {self.folder}"])


def train_causal_lm(args: CausalLMArguments, hook: ModelHook | None = None) -> CausalLMResult:
    """Train a causal language model, and measure it at multiples of its training length.

    Work in progress lies in `<output_dir>.partial`; a run that was interrupted continues there
    when it is started again with the same arguments. `output_dir` appears at the end, complete, by
    a rename: the model, which remembers its attention, its tokenizer, a model card, and
    `eval_results.json`.

    Args:
        args: `data`, `output_dir` and one of `model`, `config` and `model_type` say what; the rest
            has defaults.
        hook: what else is done with a `model` that is trained further; by default nothing.

    Returns:
        Where the checkpoint is and what was measured.

    Raises:
        ValueError: an argument that is missing or wrong, too little text, a model that ignores its
            attention implementation, or a partial run with other arguments.
        FileNotFoundError: no such data.
        FileExistsError: `output_dir` is there already.
    """
    final, work = Path(needed(args, "output_dir")), Path(f"{args.output_dir}.partial")
    data, hook = needed(args, "data"), hook or ModelHook()
    args.check()
    check_attention(args.attention, args.method_parameters())
    check_new(final)
    args = copy(args)
    args.output_dir = str(work)
    if args.length is None:
        args.length = default_length(args.model or args.config, args.overrides())

    tokenizer = load_tokenizer(args.tokenizer, args.model)
    with args.main_process_first(desc="reading the text"):
        documents = read_corpus(data, args.column, args.data_config)
        stream = token_stream(documents, tokenizer)
    train, test = split_stream(stream, args.held_out, args.length)
    task = PasskeyTask.of(tokenizer)
    rows = _training_rows(args, train, task)

    def own_work() -> None:
        with args.main_process_first(desc="claiming the work folder"):
            claim(work, args, _IDENTITY)

    source = hook.source(args, tokenizer, train, own_work) if args.model else None
    set_seed(args.seed)
    model, stored = _build(args, source, tokenizer, hook)
    lengths = _test_lengths(args, len(test), last_position(model))
    _warn_of_positions(args.length, model)
    use_cache = getattr(model.config, "use_cache", None)
    own_work()
    trainer = SoftextTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=Windows(test[: args.test_tokens], args.length),
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    train_to_end(trainer, work)

    common = {"batch_tokens": args.test_batch_tokens, "accelerator": trainer.accelerator}
    common["progress"] = trainer.is_world_process_zero() and not args.disable_tqdm
    losses = loss_by_length(trainer.model, test, lengths, amount=args.test_tokens, **common)
    passkeys: list[PasskeyScore] = []
    if task is not None and args.passkey_samples > 0:
        asked = [length for length in lengths if length >= task.shortest]
        common |= {"depths": args.passkey_depths, "samples": args.passkey_samples}
        passkeys = passkey_accuracy(trainer.model, test, task, asked, **common)

    result = CausalLMResult(final, losses, passkeys, trainer.state.log_history)
    if use_cache is not None:
        model.config.use_cache = use_cache
    nn.Module.to(model, dtype=stored)
    staged = work / "final"
    if trainer.is_world_process_zero():
        shutil.rmtree(staged, ignore_errors=True)
    trainer.save_model(str(staged))
    if trainer.is_world_process_zero():
        # a pickle that says nothing the card does not
        (staged / "training_args.bin").unlink(missing_ok=True)
        forget_loss(staged)
        facts = hook.facts(_facts(args, trainer, len(train), len(test)))
        _write_results(staged / RESULTS, facts, result)
        hook.write_card(write_causal_lm_card, staged, final, facts, losses, passkeys)
        publish(staged, final, work)
    trainer.accelerator.wait_for_everyone()
    return result


def _training_rows(args: CausalLMArguments, tokens: Tensor, task: PasskeyTask | None) -> Any:
    windows = Windows(tokens, args.length)
    if args.passkey_share == 0:
        return windows
    if task is None:
        raise ValueError(
            f"passkey_share={args.passkey_share:g} needs a tokenizer that tells digits apart; "
            f"tokenizer={args.tokenizer or args.model!r} does not."
        )
    if args.length < task.shortest:
        raise ValueError(
            f"length={args.length} is too short for passkey_share={args.passkey_share:g}: such a "
            f"window takes {task.shortest} tokens of this tokenizer."
        )
    return WithPasskeys(windows, task, args.passkey_share, args.seed)


def _test_lengths(args: CausalLMArguments, held_out: int, last: int | None) -> list[int]:
    if last is not None and last < args.length:
        raise ValueError(
            f"length={args.length} is above the {last} positions that the model has a vector for."
        )
    wanted = sorted({args.length * factor for factor in args.test_factors})
    limit = min(held_out, last or held_out)
    left_out = [length for length in wanted if length > limit]
    if left_out:
        reason = f"{held_out} tokens are held out"
        reason += "" if last is None else f", and the model has {last} positions"
        warnings.warn(f"not tested at {left_out} tokens: {reason}.", UserWarning, stacklevel=3)
    return [length for length in wanted if length <= limit]


def _warn_of_positions(length: int, model: Any) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length > limit:
        warnings.warn(
            f"length={length} is above the model's max_position_embeddings={limit}: it computes "
            "positions that it was not trained on.",
            UserWarning,
            stacklevel=3,
        )


def _build(
    args: CausalLMArguments, source: str | None, tokenizer: Any, hook: ModelHook
) -> tuple[Any, torch.dtype]:
    """The model on its attention, in float32, and the dtype to save it in."""
    if source:
        model, stored = load_model(source, hook)
        size = model.config.get_text_config().vocab_size
        if size < len(tokenizer):
            raise ValueError(
                f"tokenizer={args.tokenizer!r} has {len(tokenizer)} tokens and "
                f"model={args.model!r} only {size}."
            )
    else:
        given, longest = args.overrides(), max(args.test_factors) * args.length
        config = fresh_config(args.model_type or "", args.config, given, tokenizer, longest)
        model, stored = transformers.AutoModelForCausalLM.from_config(config), torch.float32
    set_attention(model, args.attention, args.method_parameters())
    return hook.wrap(model, stored)


def _facts(
    args: CausalLMArguments, trainer: Any, train_tokens: int, test_tokens: int
) -> dict[str, Any]:
    """What was done, for the results and the card."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    attention, block = model.config._attn_implementation, getattr(model.config, BLOCK, {})
    return {
        "model_type": model.config.model_type,
        "source": describe_source(args.model) if args.model else None,
        "base_model": args.model if args.model and not Path(args.model).exists() else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": attention,
        "loss": trainer.loss.config(),
        "attention_block": block if block.get("attention") == attention else None,
        "data": describe_source(args.data or ""),
        "train_tokens": train_tokens,
        "held_out_tokens": test_tokens,
        "length": args.length,
        "passkey_share": args.passkey_share,
        "steps": trainer.state.global_step,
        "windows_in_a_step": args.train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "device": args.device.type,
        "hf_softext": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def _write_results(path: Path, facts: dict[str, Any], result: CausalLMResult) -> None:
    losses = [
        {"length": length, "loss": loss, "perplexity": math.exp(loss)}
        for length, loss in result.losses.items()
    ]
    passkeys = [asdict(score) for score in result.passkeys]
    content = {**facts, "losses": losses, "passkeys": passkeys}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
