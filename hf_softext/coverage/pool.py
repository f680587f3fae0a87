"""Run a function on many items in processes of its own, each item under a limit of time and memory.

An item that hangs, runs out of memory or takes the interpreter down with it costs its own result
and nothing else.
"""

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

# how much longer than its limit of processor time an item may take on a busy machine
_PATIENCE = 10
_READY = "ready"
_NONE = object()


@dataclass(frozen=True)
class Failure:
    """Why an item has no result.

    Attributes:
        reason: one line.
    """

    reason: str


def run_isolated(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    jobs: int = 1,
    seconds: int = 30,
    memory: int = 8 << 30,
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with its result, or with a `Failure`, as they are done.

    Args:
        function: a function of a module, as each process imports it anew.
        items: what it is called with, one at a time; must pickle, as must the results.
        jobs: how many processes.
        seconds: processor time that an item may take; ten times as much may pass on the clock.
            Where the system has no such limit (Windows), the clock alone counts.
        memory: bytes of address space that a process may ask for; Linux only.

    Raises:
        RuntimeError: a process could not import the function.
    """
    waiting = list(items)[::-1]
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(_Worker(function, seconds, memory))
                # promised, so that no more processes start than there are items
                workers[-1].following = waiting.pop()
            nearest = min(worker.deadline for worker in workers)
            ready = wait(
                [worker.connection for worker in workers],
                timeout=max(nearest - time.monotonic(), 0),
            )
            for worker in list(workers):
                if worker.connection not in ready and time.monotonic() < worker.deadline:
                    continue
                answer = worker.take(worker.connection in ready)
                if worker.item is not _NONE:
                    yield worker.item, answer
                elif isinstance(answer, Failure):
                    raise RuntimeError(f"{function.__qualname__} could not start: {answer.reason}.")
                if worker.following is _NONE and waiting and worker.alive:
                    worker.following = waiting.pop()
                if worker.following is _NONE or not worker.alive:
                    worker.stop()
                    workers.remove(worker)
                else:
                    worker.give()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process, used for one item after another until an item breaks it."""

    def __init__(self, function: Callable[[Any], Any], seconds: int, memory: int):
        # a new interpreter: a fork of one that has run torch may hang
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, function, seconds, memory), daemon=True
        )
        self.process.start()
        theirs.close()
        self.seconds = seconds
        self.alive = True
        self.item: Any = _NONE
        self.following: Any = _NONE
        # importing counts as well
        self.deadline = time.monotonic() + 20 * _PATIENCE

    def give(self) -> None:
        """Send the item that follows."""
        self.item, self.following = self.following, _NONE
        self.deadline = time.monotonic() + _PATIENCE * self.seconds
        self.connection.send(self.item)

    def take(self, spoke: bool) -> Any:
        """What the process sent, or a `Failure` if it is gone or late."""
        if not spoke:
            self.alive = False
            return Failure(f"took more than {_PATIENCE * self.seconds} s")
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.alive = False
            self.process.join()
            code = self.process.exitcode or 0
            if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
                return Failure(f"took more than {self.seconds} s of processor time")
            words = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return Failure(f"its process ended with {words}")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(
    connection: Connection, function: Callable[[Any], Any], seconds: int, memory: int
) -> None:
    _limit("RLIMIT_AS", memory)
    connection.send(_READY)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        _limit("RLIMIT_CPU", math.ceil(time.process_time()) + seconds)
        try:
            answer = function(item)
        except Exception as error:
            answer = Failure(f"{type(error).__name__}: {error}".splitlines()[0])
        connection.send(answer)


def _limit(kind: str, value: int) -> None:
    """Set a soft limit, where the system has it; the hard one stays, to be set again."""
    try:
        import resource
    except ImportError:
        # Windows
        return
    number = getattr(resource, kind)
    _, hard = resource.getrlimit(number)
    low = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (low, hard))
