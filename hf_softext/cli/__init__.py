"""The command `softext`. A command imports what it needs when it runs, so that `--help` answers at
once."""

import sys
import warnings
from typing import Any

from hf_softext.cli.app import app


def main() -> None:
    """Run the command; a mistake of the user's ends it with one line and exit status 2."""
    with warnings.catch_warnings():
        warnings.showwarning = _without_place(warnings.showwarning)
        try:
            app()
        except (ValueError, OSError, ImportError, NotImplementedError) as error:
            print(f"softext: {error}", file=sys.stderr)
            sys.exit(2)


def _without_place(show: Any) -> Any:
    """What concerns the user on a line of its own, without the place in the code."""

    def say(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"softext: {message}", file=sys.stderr)
        else:
            show(message, category, *where)

    return say
