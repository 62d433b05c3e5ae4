"""`deltareg-registry`: serve, and what an operator does."""

from __future__ import annotations

import sys

from deltareg.cli.output import print_error
from deltareg.errors import DeltaregError
from deltareg_registry.cli.app import app

__all__ = ["main"]


def main() -> None:
    """Run the command line; errors are told on stderr, with --json on stdout too, and end it with their exit status."""
    try:
        app()
    except DeltaregError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
