"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poolkit.errors import PoolValueError


def write_whole(path: Path, data: str | bytes) -> None:
    """Write ``data`` to ``path``: under another name first, so no reader sees half of it.

    Raises PoolValueError if the folder does not exist or cannot be written to; an older file of
    that name is then as it was.
    """
    with whole(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name to write to, which becomes ``path`` when all has gone well. As `write_whole`."""
    check_writable(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield Path(temporary)
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except OSError as error:
        raise PoolValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def check_writable(path: Path) -> None:
    """Raise PoolValueError now if ``path`` cannot be written later, after minutes of work."""
    if path.is_dir():
        raise PoolValueError(f"cannot write {path}: it is a folder", "Name a file")
    if not path.parent.is_dir():
        raise PoolValueError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PoolValueError(f"cannot write {path}: no permission in {path.parent}")


def _mode(path: Path) -> int:
    """The mode of the file replaced, or what a new file gets: a temporary one is private."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
