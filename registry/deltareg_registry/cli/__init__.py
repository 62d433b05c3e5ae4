"""`deltareg-registry`: serve, and what an operator does."""

from __future__ import annotations

import sys

from deltareg.errors import DeltaregError
from deltareg_registry.cli.app import app

__all__ = ["main"]


def main() -> None:
    """Run the command line; errors are told on stderr, and end it with their exit status."""
    try:
        app()
    except DeltaregError as error:
        print(f"error[{error.code}]: {error.message}", file=sys.stderr)
        for name, told in (("cause", error.cause), ("hint", error.hint)):
            if told:
                print(f"{name}: {told}", file=sys.stderr)
        sys.exit(error.exit_code)
