"""What is found out about one model class."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What happened to one class.

    Attributes:
        name: model folder and class, "llama.LlamaModel".
        status: one of `STATUSES`.
        reached: attention modules that called the method.
        bypassed: class names of the attention modules that ran without calling it.
        idle: attention modules that did not run (the part that takes images, say).
        change: largest difference to the outputs under the model's own softmax, relative to the
            largest of those; None where it does not work, or where softmax gives NaN.
        reason: the argument that is refused, or the first line of an error.
    """

    name: str
    status: str
    reached: int = 0
    bypassed: tuple[str, ...] = ()
    idle: int = 0
    change: float | None = None
    reason: str = ""


STATUSES = {
    "works": "every attention module that ran called the method, outputs are finite",
    "in part": "some attention modules called the method, others have code of their own",
    "ignores": "the name is accepted and no attention module calls the method",
    "refuses": "the model passes an argument that the method refuses, rather than drop it",
    "error": "the model cannot be built: it looks the name up in a table of its own",
    "no attention": "no module that looks like attention ran",
    "not run": "no tiny config or no inputs were found with which it runs",
}
