"""``python -m poolkit`` and the ``poolkit`` command."""

from __future__ import annotations

import sys

from poolkit.errors import MissingExtraError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status. Errors are one line on stderr."""
    try:
        from poolkit.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("cyclopts", "rich"):
            raise
        print(f"poolkit: {MissingExtraError(error.name, 'inspect')}", file=sys.stderr)
        return 1
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
