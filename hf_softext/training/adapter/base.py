"""The model under an adapter: quantized on the way where that is asked for."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import AutoConfig

from hf_softext.attention.apply import apply_attention
from hf_softext.catalog import methods
from hf_softext.quantization.baq.config import BaqConfig
from hf_softext.quantization.baq.size import estimate
from hf_softext.training.checkpoints import needed
from hf_softext.training.pretrained import Source, pretrained_class

# its name in the work folder, and beside the adapter
BASE = "base"
# windows of running text, as `BaqConfig` takes them by default
_WINDOWS = 128
# what a task says about a model in its config
_OF_TASK = ("id2label", "label2id", "problem_type")


def quantized_base(
    args: Any, options: dict[str, Any], tokenizer: Any, texts: Any, claim: Callable[[], None]
) -> str:
    """The model of a training, quantized by BAQ in the folder of the work in progress.

    An interrupted quantization continues, block by block; one that is there is taken as it is.

    Args:
        args: of the training.
        options: of `BaqConfig`.
        tokenizer: of the model.
        texts: to calibrate with: a dataset with a column "text", or token ids (N,).
        claim: makes the folder this run's own.

    Returns:
        The folder of the quantized model.

    Raises:
        ValueError: the model is quantized already, or the bits cannot be reached.
    """
    source, work = needed(args, "model"), Path(args.output_dir)
    config = AutoConfig.from_pretrained(source)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"model={source!r} is quantized already: leave out quantization={options!r}."
        )
    kind = pretrained_class(source, config)
    asked = BaqConfig(**options)
    estimate(config, asked)
    claim()
    base, state = work / BASE, PartialState()
    finished = base.exists()
    # before the first of them makes it
    state.wait_for_everyone()
    if finished:
        return str(base)
    data = _windows(texts, asked) if torch.is_tensor(texts) else texts
    whole = BaqConfig(
        **options,
        dataset=None if asked.solver == "rtn" else data,
        tokenizer=tokenizer,
        work_dir=work / "blocks",
    )
    parameters = args.method_parameters()
    plain = Source(source, kind, "auto", args.attention, parameters, args.device)
    model = plain.load(whole)
    # the card says the name of the folder that it lies in
    staged = work / "quantized" / BASE
    if state.is_main_process:
        shutil.rmtree(staged, ignore_errors=True)
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        os.rename(staged, base)
        shutil.rmtree(work / "blocks", ignore_errors=True)
        staged.parent.rmdir()
    state.wait_for_everyone()
    return str(base)


def write_base(args: Any, source: str, model_config: Any, folder: Path) -> None:
    """Put beside an adapter what it is loaded on, as far as it is nowhere else.

    That is the config with the classes and the attention that the adapter was trained with, and
    the weights where they were quantized in this run.

    Args:
        args: of the training.
        source: what was loaded.
        model_config: the config of the model that was trained.
        folder: to make.
    """
    if Path(source) == Path(args.output_dir) / BASE:
        shutil.copytree(source, folder, copy_function=_link)
        (folder / "config.json").unlink()
    config = AutoConfig.from_pretrained(source)
    for name in _OF_TASK:
        if hasattr(model_config, name):
            setattr(config, name, getattr(model_config, name))
    if args.attention in [row.name for row in methods("attention")]:
        apply_attention(config, args.attention, **args.method_parameters())
    config.save_pretrained(folder)


def _windows(tokens: Tensor, asked: BaqConfig) -> Tensor:
    """Some windows of running text: all of it may be far more than is looked at."""
    length = min(asked.seqlen, len(tokens))
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    draw = torch.Generator().manual_seed(asked.seed)
    order = torch.randperm(len(windows), generator=draw)[: asked.nsamples or _WINDOWS]
    return windows[order.sort().values].long()


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where a file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
