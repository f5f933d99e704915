"""Errors in the order of a save's operations, each planted into a copy of training/'s own files.

Used by power.py, which must find every one of them. ``manager_class(PLANTED["no fsync of files"])`` is a
CheckpointManager with that error. A planted error is a list of (file, old text, new text); an old text that is not
in its file exactly once is a ValueError: then the protocol has changed, and this list with it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from training import checkpoint, checkpoint_file, durable

Patch = tuple[ModuleType, str, str]

FSYNC_FILE = "            _fsync(descriptor, temporary)\n"
RENAME = "        _put(digests, line + older)\n        os.replace(temporary, path)\n"
LAST_SYNC = "    fsync_folder(path.parent)\n    if older:\n"
COPY = """        _put(digests, line + older)
        copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(copy, temporary.read_bytes()){sync}
        os.close(copy)
        temporary.unlink()
"""
LATE_SYNC = """        renamed = os.open(path, os.O_RDONLY)
        os.fsync(renamed)
        os.close(renamed)
"""
RAISE = "        raise SyncError(error.errno, error.strerror, str(path)) from error\n"
SAVE = "        if self._written(state, path):\n"
DELETE_FIRST = """        for old in find_checkpoints(self.directory)[self.keep_last - 1 :]:
            delete_checkpoint(old)
"""
DELETE = """    path.unlink(missing_ok=True)
    fsync_folder(path.parent)
    digest_path(path).unlink(missing_ok=True)
"""

PLANTED: dict[str, list[Patch]] = {
    "no fsync of files": [(durable, FSYNC_FILE, "")],
    "no fsync of folders": [(durable, "        _fsync(descriptor, folder)\n", "        pass\n")],
    "the folder synced in place of the file": [
        (durable, FSYNC_FILE, "            fsync_folder(path.parent)\n")
    ],
    "fsync before the last bytes": [
        (durable, f"            file.flush()\n{FSYNC_FILE}", f"{FSYNC_FILE}            file.flush()\n")
    ],
    "renamed, then synced": [(durable, FSYNC_FILE, ""), (durable, RENAME, RENAME + LATE_SYNC)],
    "copied over the old file": [(durable, RENAME, COPY.format(sync="\n        os.fsync(copy)"))],
    "copied without fsync": [(durable, RENAME, COPY.format(sync=""))],
    "old file deleted before the rename": [
        (durable, RENAME, "        path.unlink(missing_ok=True)\n" + RENAME)
    ],
    "digest of the new file alone, first": [(durable, RENAME, RENAME.replace("line + older", "line"))],
    "digest after the file": [
        (durable, RENAME, "        os.replace(temporary, path)\n        _put(digests, line)\n")
    ],
    "digest never synced": [
        (durable, FSYNC_FILE, f'            if path.suffix != ".sha256":\n    {FSYNC_FILE}')
    ],
    "name of the digest never synced": [
        (
            durable,
            "        raise\n    fsync_folder(path.parent)\n\n\ndef _stage",
            "        raise\n\n\ndef _stage",
        )
    ],
    "name of the file never synced": [(durable, LAST_SYNC, "    if older:\n")],
    "folder synced before the rename": [
        (durable, LAST_SYNC, "    if older:\n"),
        (durable, RENAME, RENAME.replace("        os", "        fsync_folder(path.parent)\n        os")),
    ],
    "failed fsync tried again": [(durable, RAISE, "        os.fsync(descriptor)\n")],
    "failed fsync ignored": [(durable, RAISE, "        log.warning(error)\n")],
    "name of a new folder never synced": [
        (durable, "            fsync_folder(each.parent)\n", "            pass\n")
    ],
    "older ones deleted before the save": [(checkpoint, SAVE, DELETE_FIRST + SAVE)],
    "digest deleted before its file": [
        (checkpoint, DELETE, "\n".join(["", *reversed(DELETE.splitlines()[::2]), ""])[1:])
    ],
    "no sync between file and digest deleted": [
        (checkpoint, DELETE, DELETE.replace("    fsync_folder(path.parent)\n", ""))
    ],
}


def manager_class(patches: Iterable[Patch]) -> type[checkpoint.CheckpointManager]:
    """CheckpointManager, from copies of the modules that it is made of, with these changes in their text."""
    patches, copies = list(patches), {}
    originals = (durable, checkpoint_file, checkpoint)
    try:
        for module in originals:
            copies[module] = _copy(module, [(old, new) for where, old, new in patches if where is module])
            sys.modules[module.__name__] = copies[module]  # what comes next imports the copy
    finally:
        for module in originals:
            sys.modules[module.__name__] = module
    found: type[checkpoint.CheckpointManager] = copies[checkpoint].CheckpointManager
    return found


def _copy(module: ModuleType, changes: list[tuple[str, str]]) -> ModuleType:
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{module.__name__} has {source.count(old)} times, and not once: {old!r}")
        source = source.replace(old, new)
    spec = importlib.util.spec_from_loader(module.__name__, loader=None, origin=module.__file__)
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = copy  # dataclasses look themselves up there
    exec(compile(source, module.__file__, "exec"), copy.__dict__)
    return copy
