"""The losses by name, from the catalogue."""

from numbers import Real
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
    _check_types(name, kwargs, parameters(kind))
    try:
        return kind(**kwargs)
    except TypeError as error:
        raise ValueError(f"loss {name!r} with {kwargs}: a wrong type, {error}.") from error


def _check_types(name: str, given: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise ValueError for a number or a truth value that is none, as YAML may have it as text."""
    for keyword, value in given.items():
        default, truth = known[keyword], isinstance(value, bool)
        number = isinstance(value, Real) and not truth
        if isinstance(default, bool):
            wrong = "" if truth else "true or false"
        elif isinstance(default, Real):
            wrong = "" if number else "a number"
        else:
            wrong = "no truth value" if truth else ""
        if wrong:
            raise ValueError(
                f"loss {name!r} with {given}: a wrong type, {keyword} must be {wrong} and is "
                f"{value!r}."
            )


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
