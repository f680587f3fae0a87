"""From a model and a text to a quantized model, block by block.

Two passes over the blocks. The first runs on the full-precision model and measures what the columns
of each weight would lose at every width; then bits are given to columns. The second quantizes, each
module on the inputs that the quantized ones before it make. Beside the model, memory holds one
hidden state for each sequence and the Gram matrices of one block.

Under `accelerate launch` the sequences are dealt to the processes and the Gram matrices summed
exactly; every process then solves the same and ends with the same model.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from hf_softext.quantization.baq.allocation import allocate, allocate_alike
from hf_softext.quantization.baq.blocks import find_targets
from hf_softext.quantization.baq.experts import split_experts
from hf_softext.quantization.baq.inputs import Inputs, Unit, columns
from hf_softext.quantization.baq.linear import BaqLinear
from hf_softext.quantization.baq.sequences import calibration_sequences, fingerprint
from hf_softext.quantization.baq.size import weight_shape
from hf_softext.quantization.baq.solver import measure, solve
from hf_softext.quantization.baq.stages import Stage
from hf_softext.quantization.baq.weight import QuantizedWeight, Sensitivity, Settings
from hf_softext.quantization.baq.work_folder import ModuleReport, WorkFolder, weights_digest

# steps of the progress bar for a block in each pass: the second runs it once for each stage
_FIRST, _SECOND = 20, 60


def quantize_model(
    model: nn.Module,
    config: Any,
    work: str | Path | None = None,
    sequences: Sequence[Tensor] | None = None,
) -> list[ModuleReport]:
    """Replace the linear modules in a model's blocks by quantized ones.

    Args:
        model: in full precision, in memory; changed in place.
        config: a `BaqConfig`; its `calibration` is set to the fingerprint of the sequences.
        work: folder in which finished blocks are kept. The same call on the same model goes on
            where one that was broken off has stopped, and gives the same bits. Remove it when done.
        sequences: token ids, (1, L) each; made from `config.dataset` if not given. The solver "rtn"
            needs none.

    Returns:
        What became of each module, in the order of their definition.

    Raises:
        ValueError: nothing to quantize, weights or activations that are not finite, no text, bits
            that cannot be reached, or a folder of another run.
    """
    config.resolve(model)
    settings = config.settings()
    digest = weights_digest(model)
    if settings.solver == "rtn":
        sequences = []
    elif sequences is None:
        sequences = calibration_sequences(
            config.dataset, config.tokenizer, model, config.nsamples, config.seqlen, config.seed
        )
    split_experts(model)
    targets = find_targets(model, config.modules_to_not_convert)
    # what cannot be reached is to be known before hours of work
    allocate_alike(
        {name: weight_shape(model.get_submodule(name)) for name in targets.names}, settings
    )
    if settings.solver != "rtn":
        widest = max(columns(model.get_submodule(name)) for name in targets.names)
        _check_length(sequences, widest)
    config.calibration = fingerprint(sequences) if sequences else None
    request = {
        "settings": asdict(settings),
        "modules": targets.names,
        "calibration": config.calibration,
        "weights": digest,
    }
    folder = WorkFolder(work, request)
    with _evaluating(model), torch.no_grad():
        reports = _Calibration(model, Inputs(model, targets, sequences), settings, folder).run()
    if sequences:
        _warn_of_unseen(reports)
    order = {name: position for position, name in enumerate(targets.names)}
    return sorted(reports, key=lambda report: order[report.name])


def _check_length(sequences: Sequence[Tensor], widest: int) -> None:
    tokens = sum(ids.shape[1] for ids in sequences)
    if not tokens:
        raise ValueError('There are no tokens to calibrate with: give a dataset, or solver="rtn".')
    if tokens < widest:
        warnings.warn(
            f"{tokens} tokens are few to calibrate a layer of {widest} inputs: give more text.",
            stacklevel=3,
        )


def _warn_of_unseen(reports: Sequence[ModuleReport]) -> None:
    tokens = max(report.tokens for report in reports)
    few = [one for one in reports if one.tokens < min(one.columns, tokens)]
    if few:
        none = sum(one.tokens == 0 for one in few)
        warnings.warn(
            f"{len(few)} of {len(reports)} modules, as {few[0].name} with {few[0].tokens}, saw "
            f"fewer tokens than they have inputs; {none} of them saw none and are rounded without "
            "calibration. Give more text, or name them in modules_to_not_convert.",
            stacklevel=3,
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and afterwards as before, also where a module has been replaced."""
    training = {name for name, module in model.named_modules() if module.training}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = name in training


class _Calibration:
    """The two passes."""

    def __init__(self, model: nn.Module, inputs: Inputs, settings: Settings, folder: WorkFolder):
        self.model, self.inputs, self.settings, self.folder = model, inputs, settings, folder
        self.modules = [unit.block.modules for unit in inputs.units]
        first = 0 if settings.allocation == "uniform" else _FIRST
        self.bar = tqdm(
            total=len(inputs.units) * (first + _SECOND),
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            # the time left is reckoned from all that was done in this run
            smoothing=0,
            disable=not inputs.process.is_main_process,
        )

    def run(self) -> list[ModuleReport]:
        with self.bar:
            if self.settings.allocation == "uniform":
                return self._quantize(None)
            return self._quantize(allocate(self._measure(), self.settings))

    def _measure(self) -> dict[str, Sensitivity]:
        """The first pass: what each column would lose at every width."""
        found: dict[str, Sensitivity] = {}
        done = self.folder.done("measured", self.modules)
        for position in range(done):
            found |= self.folder.load_sensitivities(position, self.modules[position])
        for position, unit in self._walk("measuring", done, _FIRST):
            here: dict[str, Sensitivity] = {}
            stages = self.inputs.stages(unit)
            if unit.splits and stages:
                # as nothing changes yet, one run serves all stages and makes the outputs
                stages = [Stage(tuple(one for stage in stages for one in stage.groups), False)]
            for stage in stages:
                for name, gram, _ in self.inputs.grams(unit, stage, keep=unit.splits):
                    with _naming(name):
                        here[name] = measure(self._weight(name), gram, self.settings)
            self.inputs.end(unit, ran=bool(stages))
            self.folder.save_sensitivities(position, here)
            found |= here
            self.bar.update(_FIRST)
        return found

    def _quantize(self, levels: Mapping[str, Tensor] | None) -> list[ModuleReport]:
        """The second pass: each module on what the quantized ones before it make."""
        found: list[ModuleReport] = []
        ready: dict[str, BaqLinear] = {}
        done = self.folder.done("quantized", self.modules)
        for position in range(done):
            loaded = self.folder.load_weights(position, self.modules[position])
            for name, (weight, report) in loaded.items():
                ready[name] = self._use(name, weight)
                found.append(report)
        for position, unit in self._walk("quantizing", done, _SECOND):
            # those before it have just been run on their dense weights
            self._replace(ready, unit)
            here: dict[str, QuantizedWeight] = {}
            reports: dict[str, ModuleReport] = {}
            stages = self.inputs.stages(unit)
            for stage in stages:
                for name, gram, tokens in self.inputs.grams(unit, stage):
                    with _naming(name):
                        here[name], reports[name] = self._solve(name, gram, tokens, levels)
                for name in (name for group in stage.groups for name in group):
                    ready[name] = self._use(name, here[name])
                self.bar.update(_SECOND // len(stages))
            self.inputs.end(unit)
            self.folder.save_weights(position, here, reports)
            found.extend(reports.values())
            self.bar.update(_SECOND % len(stages) if stages else _SECOND)
        self._replace(ready)
        return found

    def _walk(self, what: str, done: int, cost: int) -> Iterator[tuple[int, Unit]]:
        """The blocks that are left, with the activations of those that are done made again."""
        units = self.inputs.units
        if not self.bar.disable:
            # counted as done, but not into the speed
            self.bar.initial += done * cost
            self.bar.n += done * cost
        if done < len(units):
            if done:
                self.bar.set_description(f"running the {done} finished blocks")
            self.inputs.begin(done)
        for position in range(done, len(units)):
            name = units[position].block.name or type(self.model).__name__
            self.bar.set_description(f"{what} {name} ({position + 1} of {len(units)})")
            yield position, units[position]

    def _solve(
        self, name: str, gram: Tensor | None, tokens: int, levels: Mapping[str, Tensor] | None
    ) -> tuple[QuantizedWeight, ModuleReport]:
        weight = self._weight(name)
        rows, columns = weight.shape
        if levels is None:
            # all that counts for equal widths is which columns are dead
            alive = torch.ones(columns) if gram is None else (gram.diagonal() > 0).cpu()
            known = {name: Sensitivity(rows, alive.double()[:, None].expand(-1, 9))}
            levels = allocate(known, self.settings)
        found, outcome = solve(weight, gram, levels[name].to(weight.device), self.settings)
        return found, ModuleReport(name, rows, columns, tokens=tokens, **asdict(outcome))

    def _weight(self, name: str) -> Tensor:
        """(O, I) float32."""
        module: Any = self.model.get_submodule(name)
        weight = module.weight.detach().float()
        return weight.T.contiguous() if isinstance(module, Conv1D) else weight

    def _use(self, name: str, found: QuantizedWeight) -> BaqLinear:
        """Have a module compute with a quantized weight from here on, dense as yet."""
        module: Any = self.model.get_submodule(name)
        weight = found.dequantize().to(module.weight)
        module.weight.data = weight.T.contiguous() if isinstance(module, Conv1D) else weight
        return BaqLinear.from_weight(found, module.bias, weight.dtype)

    def _replace(self, ready: dict[str, BaqLinear], unit: Unit | None = None) -> None:
        """Put quantized modules in the place of dense ones.

        The first block of a stack stays dense as long as the stack runs: others may need of it what
        it makes for all of them, and this has to be the same in a run that goes on.
        """
        waits = unit.stack.blocks[0].modules if unit is not None and unit.stack is not None else ()
        for name in [name for name in ready if name not in waits]:
            self.model.set_submodule(name, ready.pop(name))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Have an error say which module it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
