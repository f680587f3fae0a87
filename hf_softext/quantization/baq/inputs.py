"""What the modules of a block are given: Gram matrices over all sequences and processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_softext.quantization.baq.blocks import Block, Stack, Targets
from hf_softext.quantization.baq.gram import Gram, reduce, settle
from hf_softext.quantization.baq.processes import from_main, processes
from hf_softext.quantization.baq.replay import Reached, Replay, splits
from hf_softext.quantization.baq.stages import Stage, plan_stages, watching


@dataclass(frozen=True)
class Unit:
    """A block, and where in the run it is; one without a stack is never run."""

    block: Block
    stack: Stack | None = None
    index: int = 0

    @property
    def splits(self) -> bool:
        """Whether it is run by itself; else the whole model is run for it."""
        return self.stack is not None and splits(self.stack)

    @property
    def last(self) -> bool:
        """Whether its stack ends with it."""
        return self.stack is None or self.index == len(self.stack.blocks) - 1


class Inputs:
    """Runs the blocks of a model on calibration sequences, from first to last.

    Process r of P has the sequences r, r + P, r + 2P, ...; all of its methods have to be called on
    every process.

    Attributes:
        units: the blocks in the order in which they run.
    """

    def __init__(self, model: nn.Module, targets: Targets, sequences: Sequence[Tensor]):
        self.model, self.count = model, len(sequences)
        self.process = processes()
        if not sequences:
            blocks = [block for stack in targets.stacks for block in stack.blocks]
            self.units = [Unit(block) for block in blocks]
            return
        self.replay = Replay(model, targets, sequences)
        self.units = [
            Unit(block, stack, index)
            for stack in self.replay.stacks
            for index, block in enumerate(stack.blocks)
        ]
        self.units += [Unit(block) for block in self.replay.silent]

    def begin(self, position: int) -> None:
        """Make the block at a position the next one, from no activations at all."""
        if not self.count:
            return
        self.replay.restart()
        before = [unit for unit in self.units[:position] if unit.splits]
        for unit in before:
            if unit is before[-1] and any(one.splits for one in self.units[position:]):
                # those before it are kept on the way
                self._run(unit)
            if unit.stack is not None and unit.last:
                self.replay.finish(unit.stack)

    def end(self, unit: Unit, ran: bool = False) -> None:
        """Have the next block be given what this one puts out now.

        Args:
            unit: the block.
            ran: whether its outputs are kept already.
        """
        if unit.splits and not ran and any(one.splits for one in self._after(unit)):
            self._run(unit)
        if unit.stack is not None and unit.last:
            self.replay.finish(unit.stack)

    def _after(self, unit: Unit) -> list[Unit]:
        return self.units[self.units.index(unit) + 1 :]

    def _run(self, unit: Unit) -> None:
        if unit.stack is not None and unit.splits:
            for sequence in range(
                self.process.process_index, self.count, self.process.num_processes
            ):
                self.replay.run(unit.stack, unit.index, sequence, keep=True)

    def stages(self, unit: Unit) -> list[Stage]:
        """The stages of a block, as the first sequence shows them."""
        names = unit.block.modules
        if unit.stack is None or not names:
            return [Stage(tuple((name,) for name in names), single=False)] if names else []
        stages = None
        if self.process.is_main_process:
            stack, index = unit.stack, unit.index
            stages = plan_stages(self.model, names, lambda: self.replay.run(stack, index, 0))
        return from_main(stages)

    def grams(
        self, unit: Unit, stage: Stage, keep: bool = False
    ) -> Iterator[tuple[str, Tensor | None, int]]:
        """The Gram matrix of every module of a stage.

        Args:
            unit: the block.
            stage: of it.
            keep: whether to keep what the block puts out.

        Returns:
            Name, matrix (I, I) float32, number of tokens. Modules with the same input come one
            after the other and have the same matrix; one without any input has None.

        Raises:
            ValueError: inputs that are not finite.
        """
        if unit.stack is None:
            yield from ((name, None, 0) for group in stage.groups for name in group)
            return
        grams = {group[0]: self._empty(group[0]) for group in stage.groups}
        step = self.process.num_processes
        for start in range(0, self.count, step):
            sequence = start + self.process.process_index

            def watch(name: str, inputs: Tensor, sequence: int = sequence) -> None:
                try:
                    grams[name].add(inputs)
                except ValueError as error:
                    raise ValueError(f"{name}, calibration sequence {sequence}: {error}") from error
                if stage.single and not keep:
                    raise Reached

            if sequence < self.count:
                with watching(self.model, list(grams), watch):
                    self.replay.run(unit.stack, unit.index, sequence, keep)
            settle(grams)
        reduce(grams)
        for group in stage.groups:
            gram = grams.pop(group[0])
            tokens, total = gram.tokens, gram.total()
            # its sums are no longer needed when the solver takes its memory
            del gram
            for name in group:
                yield name, total, tokens

    def _empty(self, name: str) -> Gram:
        module: Any = self.model.get_submodule(name)
        return Gram(columns(module), module.weight.device)


def columns(module: nn.Module) -> int:
    """I of a Linear or Conv1D."""
    features = getattr(module, "in_features", None) or getattr(module, "nx", None)
    return int(features or 0)
