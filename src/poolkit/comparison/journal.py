"""The finished runs of a study, one line of JSON each, which several processes may write.

A line is appended in one write under a lock and flushed to the disk; what a power cut may leave of
one is cut off by the next who writes. Who works on something holds a lock that the system lets go
of when the process ends, however it ends, so nothing is left to be cleaned up. Both are POSIX
record locks, which work between machines on a shared file system too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from poolkit.errors import PoolValueError
from poolkit.files import check_writable

#: The byte of the lock file that stands for the journal itself; claims are elsewhere.
_WRITING = 0


class Journal:
    """A file of records; `claim` reserves work among processes.

    The locks are on a file beside it, ``.NAME.lock``, which is empty and stays. They are a
    process's, so one process opens a journal once at a time.

    Raises:
        PoolValueError: if the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        check_writable(path)
        self.path = path
        self._locks = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        os.close(self._locks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def records(self) -> list[dict[str, Any]]:
        """All records in the order in which they were written; a broken last line is none."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        found = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or "kind" not in record:
                    raise ValueError
            except ValueError:
                raise PoolValueError(
                    f"line {number} of {self.path} is no record of a study",
                    "Name another file, or take the line out",
                ) from None
            found.append(record)
        return found

    def begin(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write the first record, unless another process has done so; returns the one there is."""
        with self._locked():
            records = self.records()
            if not records:
                self._write(record)
            return records[0] if records else record

    def append(self, record: dict[str, Any]) -> None:
        """Write a record whole or not at all."""
        with self._locked():
            self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            end = _whole_lines(descriptor)
            os.ftruncate(descriptor, end)
            if os.pwrite(descriptor, line, end) < len(line):
                os.ftruncate(descriptor, end)
                raise PoolValueError(f"cannot write {self.path}: the disk is full")
            os.fsync(descriptor)
        except OSError as error:
            raise PoolValueError(f"cannot write {self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """No other process writes meanwhile."""
        import fcntl

        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, _WRITING)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _WRITING)

    def claim(self, key: str) -> bool:
        """Reserve `key` for this process, and say whether it was free."""
        import fcntl

        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise PoolValueError(
                f"cannot lock {self.path}: {error.strerror}", "Name a file on another disk"
            ) from error
        return True

    def release(self, key: str) -> None:
        import fcntl

        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _place(key))


def _place(key: str) -> int:
    """The byte that stands for a key: locks need no byte to be there."""
    return 1 + int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


def _whole_lines(descriptor: int) -> int:
    """The length of a file up to the end of its last whole line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
