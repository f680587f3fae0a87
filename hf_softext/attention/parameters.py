"""Parameters of an attention method: a closed set of names, each with a default and a range."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_softext.catalog import did_you_mean


@dataclass(frozen=True)
class Number:
    """A finite number in a range.

    Attributes:
        default: the value when none is given; None means "derived from the model".
        low: smallest value.
        high: largest value.
        above_low: whether `low` itself is excluded.
        integer: whether only whole numbers are allowed.
    """

    default: float | None
    low: float
    high: float
    above_low: bool = False
    integer: bool = False

    def check(self, name: str, value: Any) -> Any:
        """Return the value or raise a ValueError that names it and the range."""
        if value is None and self.default is None:
            return None
        number = isinstance(value, int if self.integer else (int, float))
        if number and not isinstance(value, bool) and math.isfinite(value):
            above = value > self.low if self.above_low else value >= self.low
            if above and value <= self.high:
                return value
        raise ValueError(f"{name}={value!r} is not allowed: {self.describe()}.")

    def describe(self) -> str:
        """The range in words."""
        noun = "a whole number" if self.integer else "a number"
        low = f"above {self.low:g}" if self.above_low else f"from {self.low:g}"
        return f"{noun} {low} up to {self.high:g}"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    default: str
    options: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        """Return the value or raise a ValueError that names it and the options."""
        if value not in self.options:
            raise ValueError(f"{name}={value!r} is not allowed: {self.describe()}.")
        return value

    def describe(self) -> str:
        """The options in words."""
        return "one of " + ", ".join(map(repr, self.options))


@dataclass(frozen=True)
class Pair:
    """Two whole numbers, or None.

    Attributes:
        low: the smallest value of each.
        high: the largest.
        default: None.
    """

    low: int
    high: int
    default: None = None

    def check(self, name: str, value: Any) -> list[int] | None:
        """Return the value, as JSON has it, or raise a ValueError that names it and the range."""
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and len(value) == 2:
            whole = all(isinstance(x, int) and not isinstance(x, bool) for x in value)
            if whole and all(self.low <= x <= self.high for x in value):
                return list(value)
        raise ValueError(f"{name}={value!r} is not allowed: {self.describe()}.")

    def describe(self) -> str:
        """The range in words."""
        return f"two whole numbers from {self.low} up to {self.high}, or null"


Parameters = Mapping[str, Number | Choice | Pair]


def resolve(method: str, known: Parameters, given: Mapping[str, Any]) -> dict[str, Any]:
    """Validated values for every parameter of a method.

    Args:
        method: the method's name, for messages.
        known: its parameters.
        given: what the user or a config says; never passed on unchecked.

    Returns:
        A value for each name in `known`.

    Raises:
        ValueError: an unknown name (with the nearest known one) or a value outside its range.
    """
    for name in given:
        if name not in known:
            raise ValueError(
                f"{method!r} has no parameter {name!r}.{did_you_mean(str(name), list(known))}"
            )
    return {name: spec.check(name, given.get(name, spec.default)) for name, spec in known.items()}
