"""The command `softext`. A command imports what it needs when it runs, so that `--help` answers at
once."""

import sys

from hf_softext.cli.app import app


def main() -> None:
    """Run the command; a mistake of the user's ends it with one line and exit status 2."""
    try:
        app()
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        print(f"softext: {error}", file=sys.stderr)
        sys.exit(2)
