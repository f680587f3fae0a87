"""Running a model block by block over many sequences.

For a block the whole model is run again on each sequence, from its embeddings on. The blocks before
it do not compute: they hand on what they are given, and the last of them the hidden state that it
had put out for this sequence. The block itself computes, and then the run ends. So the model itself
makes masks, positions and whatever else it gives to each of its blocks, and nothing but one hidden
state a sequence is kept.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_softext.quantization.baq.blocks import Block, Stack, Targets

# tokens of the run in which a model shows how it calls its blocks
_PROBE = 16


class Reached(Exception):  # noqa: N818
    """Ends a run of the model where it has gone far enough."""


@dataclass
class _State:
    """What a block put out: the hidden state, and what it shares with later blocks by name."""

    hidden: Tensor
    shared: dict[int | str, dict]


@dataclass
class _Calls:
    """What a run has shown of one block: its outputs, and the mappings that it changed."""

    outputs: list[Any] = field(default_factory=list)
    shared: set[int | str] = field(default_factory=set)


class Replay:
    """A model that is run block by block.

    Blocks whose hidden states do not pass from one to the next, or that run more than once, are
    found out on a few tokens; their stack then counts as one block, with a warning.

    Attributes:
        stacks: the stacks in the order in which they run. Those whose blocks do not run at all
            (the image half of a model that is given text) are not among them.
        silent: the blocks that do not run.
    """

    def __init__(self, model: nn.Module, targets: Targets, sequences: Sequence[Tensor]):
        """Find out how the model calls its blocks.

        Args:
            model: in eval mode.
            targets: its stacks of blocks.
            sequences: token ids, (1, L) each.

        Raises:
            ValueError: the model does not run on token ids alone.
        """
        self.model = model
        self.sequences = sequences
        self._states: dict[str, dict[int, _State]] = {}
        self._finished: list[Stack] = []
        self._calls: dict[str, _Calls] = {}
        self._length: int | None = _PROBE
        self.stacks, self.silent = self._probe(targets)
        self._length = None
        self.restart()

    def restart(self) -> None:
        """Forget all hidden states."""
        self._states, self._finished = {}, []

    def finish(self, stack: Stack) -> None:
        """Have later stacks be run on the outputs of this one, which are kept."""
        if splits(stack):
            self._finished.append(stack)

    def run(self, stack: Stack, index: int, sequence: int, keep: bool = False) -> None:
        """Run the model on one sequence up to the end of a block.

        Args:
            stack: of the block.
            index: of the block in it; the one before must have been run with `keep`, or else all
                before it compute.
            sequence: index of the sequence.
            keep: whether the block's output is kept for the next one, in place of its input.
        """
        with ExitStack() as undo, torch.no_grad():
            for name, forward in self._forwards(stack, index, sequence, keep):
                undo.enter_context(_replaced(self.model.get_submodule(name), forward))
            try:
                self.model(**self._inputs(sequence))
            except Reached:
                return

    def _inputs(self, sequence: int) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        ids = self.sequences[sequence][:, : self._length].to(device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(self.model.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            inputs["use_cache"] = False
        return inputs

    def _forwards(
        self, stack: Stack, index: int, sequence: int, keep: bool
    ) -> Iterator[tuple[str, Callable]]:
        """What stands in for the forward passes of which modules."""
        if not splits(stack):
            return
        for finished in self._finished:
            yield from self._passing(finished, len(finished.blocks), sequence)
        yield from self._passing(stack, index, sequence)
        block = stack.blocks[index]
        yield block.name, self._computing(stack, block, sequence, keep, end=True)

    def _passing(self, stack: Stack, end: int, sequence: int) -> Iterator[tuple[str, Callable]]:
        state = self._states.get(stack.name, {}).get(sequence)
        if state is None:
            # nothing to hand on: all compute, and the last block of a finished stack is kept
            if end == len(stack.blocks):
                block = stack.blocks[-1]
                yield block.name, self._computing(stack, block, sequence, keep=True, end=False)
            return
        first = self.model.get_submodule(stack.blocks[0].name).forward
        running = end < len(stack.blocks)
        extras: list[Any] = []

        def forward(position: int, output: Any, *args: Any, **kwargs: Any) -> Any:
            hidden = _hidden(args, kwargs)
            if position == 0 and isinstance(output, tuple):
                extras[:] = [None] * (len(output) - 1)
                # what the first block makes for all others, as T5's position bias, is made again
                if running and any(extra is not None for extra in output[1:]):
                    extras[:] = first(*args, **kwargs)[1:]
            if position == end - 1:
                hidden = state.hidden.clone()
                for key, mapping in _mappings(args, kwargs):
                    mapping.update(state.shared.get(key, {}))
            return (hidden, *extras) if isinstance(output, tuple) else hidden

        for position, block in enumerate(stack.blocks[:end]):
            output = self._calls[block.name].outputs[0]
            yield block.name, _bind(forward, position, output)

    def _computing(
        self, stack: Stack, block: Block, sequence: int, keep: bool, end: bool
    ) -> Callable:
        original = self.model.get_submodule(block.name).forward
        changed = {key for one in stack.blocks for key in self._calls[one.name].shared}

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if keep:
                shared = {
                    key: dict(mapping) for key, mapping in _mappings(args, kwargs) if key in changed
                }
                states = self._states.setdefault(stack.name, {})
                states[sequence] = _State(_first(output), shared)
            if end:
                raise Reached
            return output

        return forward

    def _probe(self, targets: Targets) -> tuple[list[Stack], list[Block]]:
        """Run a few tokens plainly, then block by block, and compare."""
        order = self._observe([stack for stack in targets.stacks if splits(stack)])
        stacks, silent = [], []
        for stack in targets.stacks:
            if not splits(stack):
                stacks.append(stack)
                continue
            ran = tuple(block for block in stack.blocks if self._calls[block.name].outputs)
            silent += [block for block in stack.blocks if not self._calls[block.name].outputs]
            if ran:
                stacks.append(Stack(stack.name, ran))
        first = {name: position for position, name in reversed(list(enumerate(order)))}
        stacks.sort(key=lambda stack: first.get(stack.blocks[0].name, 0))
        for position, stack in enumerate(stacks):
            if not splits(stack):
                continue
            reason = self._why_not(stack, order)
            if reason is None:
                self.finish(stack)
                continue
            modules = tuple(name for block in stack.blocks for name in block.modules)
            stacks[position] = Stack(stack.name, (Block(stack.name, modules),))
            warnings.warn(
                f"{stack.name} of {type(self.model).__name__} cannot be run block by block "
                f"({reason}), and is calibrated by running the whole model for each of its layers: "
                "that takes long.",
                stacklevel=4,
            )
        for calls in self._calls.values():
            # of the outputs only their form is needed from here on
            calls.outputs = [_form(output) for output in calls.outputs[:1]]
        return stacks, silent

    def _observe(self, stacks: Sequence[Stack]) -> list[str]:
        """Run a few tokens plainly; the names of the blocks in the order of their calls."""
        order: list[str] = []
        with ExitStack() as undo, torch.no_grad():
            for block in (block for stack in stacks for block in stack.blocks):
                self._calls[block.name] = _Calls()
                module = self.model.get_submodule(block.name)
                forward = _bind(self._recording, block.name, module.forward, order)
                undo.enter_context(_replaced(module, forward))
            try:
                self.model(**self._inputs(0))
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{type(self.model).__name__} does not run on token ids alone ({error}): give "
                    'solver="rtn", which needs no calibration.'
                ) from error
        return order

    def _recording(
        self, name: str, original: Callable, order: list[str], *args: Any, **kwargs: Any
    ) -> Any:
        before = {key: dict(mapping) for key, mapping in _mappings(args, kwargs)}
        output = original(*args, **kwargs)
        order.append(name)
        calls = self._calls[name]
        # a later block may write into the hidden state
        kept = _first(output).clone() if _readable(output) else None
        calls.outputs.append((kept, *output[1:]) if isinstance(output, tuple) else kept)
        for key, mapping in _mappings(args, kwargs):
            entries = before[key]
            if any(entries.get(name) is not value for name, value in mapping.items()):
                calls.shared.add(key)
        return output

    def _why_not(self, stack: Stack, order: list[str]) -> str | None:
        """Why a stack cannot be run block by block, if it cannot."""
        names = [block.name for block in stack.blocks]
        if [name for name in order if name in names] != names:
            return "blocks run more than once or in another order"
        for index, name in enumerate(names):
            expected = _first(self._calls[name].outputs[0])
            if expected is None:
                return f"{name} puts out neither a tensor nor a tuple that begins with one"
            try:
                self.run(stack, index, 0, keep=True)
            # whatever it is that the model misses here, it does not work this way
            except Exception as error:
                return f"{name} alone raises {type(error).__name__}: {error}"
            if not _agree(self._states[stack.name][0].hidden, expected):
                return f"{name} alone computes something else"
        return None


def splits(stack: Stack) -> bool:
    """Whether a stack consists of blocks; else it is one, and the whole model is run for it."""
    return stack.blocks[0].name != stack.name


def _readable(output: Any) -> bool:
    if isinstance(output, tuple):
        return bool(output) and isinstance(output[0], Tensor)
    return isinstance(output, Tensor)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _agree(found: Tensor, expected: Tensor) -> bool:
    """The same but for rounding; what is not finite is found where it is used."""
    if found.shape != expected.shape:
        return False
    found, expected = found.float().nan_to_num(), expected.float().nan_to_num()
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _form(output: Any) -> Any:
    """The same without tensors: True stands where one is."""
    if isinstance(output, tuple):
        return tuple(None if one is None else True for one in output)
    return True


def _hidden(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    given = [kwargs["hidden_states"]] if "hidden_states" in kwargs else [*args, *kwargs.values()]
    return next(value for value in given if isinstance(value, Tensor))


def _mappings(args: tuple, kwargs: dict[str, Any]) -> list[tuple[int | str, MutableMapping]]:
    """The arguments through which blocks may share what they compute, as Gemma 3n does."""
    given = [*enumerate(args), *kwargs.items()]
    return [(key, value) for key, value in given if isinstance(value, MutableMapping)]


def _bind(function: Callable, *first: Any) -> Callable:
    return lambda *args, **kwargs: function(*first, *args, **kwargs)


@contextmanager
def _replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Have a module do something else; what accelerate may have put there is kept."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
