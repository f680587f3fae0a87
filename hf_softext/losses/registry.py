"""The losses by name, from the catalogue."""

from typing import Any

from hf_softext.catalog import did_you_mean, find, methods
from hf_softext.losses.base import SoftextLoss, parameters

KINDS = ("binary", "multiclass", "multilabel", "regression", "token")


def get_loss(name: str | SoftextLoss, **kwargs: Any) -> SoftextLoss:
    """The loss called `name`.

    Args:
        name: one of `list_losses()`; a loss that is there already is returned as it is.
        **kwargs: its arguments.

    Raises:
        ValueError: an unknown name or keyword (the nearest one is suggested), a keyword for a loss
            that is there already, or a value that the loss refuses.
    """
    if isinstance(name, SoftextLoss):
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} given with a loss that is there already.")
        return name
    kind: type[SoftextLoss] = find(name, "loss").load()
    known = list(parameters(kind))
    for keyword in kwargs:
        if keyword not in known:
            raise ValueError(f"loss {name!r} takes no {keyword!r}.{did_you_mean(keyword, known)}")
    try:
        return kind(**kwargs)
    except TypeError as error:
        # such as a number that a YAML file has as text
        raise ValueError(f"loss {name!r} with {kwargs}: a wrong type, {error}.") from error


def list_losses(kind: str | None = None) -> list[str]:
    """The names of the losses, or of those for one kind of problem.

    Args:
        kind: "binary", "multiclass", "multilabel", "regression" or "token".

    Raises:
        ValueError: an unknown kind.
    """
    if kind is None:
        return [row.name for row in methods("loss")]
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown.{did_you_mean(str(kind), list(KINDS))}")
    return [row.name for row in methods("loss") if kind in row.load().kinds]
