"""Files that are never half-written: a file and its SHA-256 beside it, replaced so that a kill never hurts.

Used by checkpoint_file.py and checkpoint.py. Nothing here needs torch.

On disk:  epoch_2_step_500.pt            any bytes
          epoch_2_step_500.pt.sha256     their digest, for `sha256sum -c`
          .epoch_2_step_500.pt.….saving  a save under way, or the litter of one that was killed

Paper: Pillai, Chidambaram, Alagappan, Al-Kiswany, Arpaci-Dusseau and Arpaci-Dusseau, "All File Systems Are Not
Created Equal: On the Complexity of Crafting Crash-Consistent Applications", OSDI 2014.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

BUFFER = 1 << 20  # small pieces are gathered, large ones pass through
LOCK_TIMEOUT = 60.0  # seconds; a stopped process must not stop another run for ever
LITTER = re.compile(r"\..+\.[0-9a-f]{8}\.saving")

Fill = Callable[[BinaryIO], object]

log = logging.getLogger(__name__)


class SyncError(OSError):
    """fsync failed. What the system held may be gone: asking again would succeed and mean nothing."""


def digest_path(path: str | os.PathLike[str]) -> Path:
    """Where the digest of a file lies: beside it, with ".sha256" added to the name."""
    return Path(f"{os.fspath(path)}.sha256")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, with names that a power cut does not undo."""
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        try:
            fsync_folder(each.parent)
        except SyncError:  # the next save would find the folder there, and its name would never be durable
            with suppress(OSError):
                each.rmdir()
            raise


def is_missing(path: Path) -> bool:
    """Whether there is certainly no such file. What cannot be looked at raises: from Python 3.14 on, `exists` says
    False of it, and who believes that removes the digest of a good file."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    return False


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. A file's own fsync does not do that."""
    if sys.platform == "win32":  # it cannot open a folder, and keeps its names durable by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _fsync(descriptor, folder)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncError(error.errno, error.strerror, str(path)) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Hold a folder against other writers of this module, in this process or another on this machine.

    Yields whether the folder is really held: some network file systems have no locks, nor has Windows. Then
    two writers do not wait for each other, and nobody may call the other's temporary files litter. A lock dies
    with its process. Readers need none.

    Raises:
        TimeoutError: somebody else held the folder for LOCK_TIMEOUT seconds.
    """
    if sys.platform == "win32":
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = _lock(descriptor, folder)
        try:
            yield held
        finally:
            if held:  # by name: a forked data worker may have inherited the descriptor, and with it the lock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                message = f"another process has been writing there for {LOCK_TIMEOUT:.0f} s"
                raise TimeoutError(errno.ETIMEDOUT, message, str(folder)) from None
        except OSError:
            return False
        time.sleep(0.02)


def write_with_digest(path: Path, fill: Fill) -> str:
    """Put bytes under a name and their digest beside it, over an older pair if there is one.

    Two files cannot be replaced at the same instant. So the digest file names both contents as long as either
    may be there:

        1. temporary file ← the new bytes, hashed as they are written; fsync
        2. digest file    ← line of the new bytes, then the lines that it had
        3. path           ← the temporary file, renamed
        4. digest file    ← line of the new bytes alone (where there was an older file)

    Steps 2 and 4 are temporary file, fsync, rename themselves, and after each rename the folder is fsynced.
    So at every instant, power cuts included, the file under the name is whole and its digest beside it.
    After a failed fsync everything is written once more, into new files; no fsync is repeated.

    Args:
        path: the name; its folder exists.
        fill: writes the content into the binary file that it is given; called again after a failed fsync.

    Returns:
        The SHA-256 in hex.

    Raises:
        OSError: as the system gave it (disk full, no permission …). The older pair is as it was, unless only
            step 4 or the fsync after the rename failed, and no temporary file is left.
    """
    with exclusive(path.parent) as held:
        if held:
            remove_litter(path.parent)  # before the write: what a killed save left may be what fills the disk
        try:
            return _write_pair(path, fill)
        except SyncError as error:
            log.warning("fsync of %s failed (%s): writing it once more", path, error.strerror)
            return _write_pair(path, fill)


def _write_pair(path: Path, fill: Fill) -> str:
    digests = digest_path(path)
    older = _older_lines(path)
    temporary, digest = _stage(path, fill)
    line = f"{digest}  {path.name}\n".encode()
    try:
        _put(digests, line + older)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if not older:  # a digest of nothing is litter
            digests.unlink(missing_ok=True)
        else:
            # two lines are as valid as one; only `sha256sum -c` would complain of the new one
            with suppress(OSError):
                _put(digests, older)
        raise
    fsync_folder(path.parent)
    if older:
        _put(digests, line)
    return digest


def _older_lines(path: Path) -> bytes:
    """The digest lines of the file that is about to be replaced; empty if there is none."""
    if is_missing(path) or not path.is_file():  # to read a FIFO of that name would be to wait without end
        return b""
    if digest_path(path).is_file():
        return digest_path(path).read_bytes()
    # saved by another program: without a line it would look damaged after a kill
    with open(path, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode()


def _put(path: Path, data: bytes) -> None:
    temporary, _ = _stage(path, lambda file: file.write(data))
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _stage(path: Path, fill: Fill) -> tuple[Path, str]:
    """The content in a temporary file of the same folder, on the disk; and its SHA-256."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.saving")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with _HashingFile(descriptor) as raw:
            file = io.BufferedWriter(raw, BUFFER)  # type: ignore[type-var]
            fill(file)
            file.flush()
            _fsync(descriptor, temporary)
    except BaseException as failure:
        temporary.unlink(missing_ok=True)
        if raw.error not in (None, failure):  # torch's writer puts an error of its own in front of it
            raise raw.error from None
        raise
    return temporary, raw.sha256.hexdigest()


class _HashingFile(io.RawIOBase):
    """A raw file that knows the SHA-256 of what was written, and why no more was. It owns its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            count = os.write(self._descriptor, data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(memoryview(data)[:count])  # a short write: the buffer above sends the rest
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)


def remove_litter(folder: Path) -> None:
    """Remove the temporary files of saves that were killed. Only for who holds the folder."""
    for path in folder.glob(".*.saving"):
        if LITTER.fullmatch(path.name):
            path.unlink(missing_ok=True)
