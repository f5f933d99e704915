"""Run a program on a real folder and feed each of its operations to the model of a disk.

Used by power.py: ``with recorded(folder, disk, after_each): …``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testcases.torture.disk import ROOT, Disk, Tree

OPERATIONS = ("open", "write", "fsync", "close", "replace", "rename", "link", "unlink", "mkdir", "rmdir")


class _Recorder:
    """The operating system's functions, each followed by the same on the model."""

    def __init__(self, folder: Path, disk: Disk, failing: set[int]) -> None:
        self.root, self.disk, self.failing = str(folder), disk, failing
        self.inodes: dict[str, int] = {self.root: ROOT}  # by absolute path, as the program sees it now
        self.open: dict[int, tuple[int, int]] = {}  # descriptor → inode, offset
        self.fsyncs = 0
        self.real = {name: getattr(os, name) for name in OPERATIONS}

    def place(self, path: Any) -> tuple[int, str]:
        folder, name = os.path.split(os.fspath(path))
        return self.inodes[folder], name

    def ours(self, path: Any) -> bool:
        return not isinstance(path, int) and (os.fspath(path) + "/").startswith(self.root + "/")

    def os_open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        descriptor = self.real["open"](path, flags, mode, **options)
        if self.ours(path):
            key = os.fspath(path)
            if key not in self.inodes:
                self.inodes[key] = self.disk.create(*self.place(path))
            elif flags & os.O_TRUNC:
                self.disk.write(self.inodes[key], 0, None)
            self.open[descriptor] = (self.inodes[key], 0)
        return descriptor

    def os_write(self, descriptor: int, data: Any) -> int:
        count = self.real["write"](descriptor, data)
        if descriptor in self.open:
            inode, offset = self.open[descriptor]
            self.disk.write(inode, offset, bytes(memoryview(data)[:count]))
            self.open[descriptor] = (inode, offset + count)
        return count

    def os_fsync(self, descriptor: int) -> None:
        if descriptor in self.open:
            works = self.fsyncs not in self.failing
            self.fsyncs += 1
            self.disk.fsync(self.open[descriptor][0], works)
            if not works:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def os_close(self, descriptor: int) -> None:
        self.open.pop(descriptor, None)
        self.real["close"](descriptor)

    def os_replace(self, source: Any, target: Any) -> None:
        self.real["replace"](source, target)
        if self.ours(source):
            inode = self.inodes.pop(os.fspath(source))
            self.disk.rename(inode, self.place(source), self.place(target))
            self.inodes[os.fspath(target)] = inode

    os_rename = os_replace

    def os_link(self, source: Any, target: Any, **options: Any) -> None:
        self.real["link"](source, target, **options)
        if self.ours(target):
            self.inodes[os.fspath(target)] = self.inodes[os.fspath(source)]
            self.disk.link(self.inodes[os.fspath(source)], *self.place(target))

    def os_unlink(self, path: Any, **options: Any) -> None:
        self.real["unlink"](path, **options)
        if self.ours(path):
            self.disk.unlink(*self.place(path))
            del self.inodes[os.fspath(path)]

    def os_mkdir(self, path: Any, *args: Any, **options: Any) -> None:
        self.real["mkdir"](path, *args, **options)
        if self.ours(path):
            self.inodes[os.fspath(path)] = self.disk.make_folder(*self.place(path))

    def os_rmdir(self, path: Any, **options: Any) -> None:
        self.real["rmdir"](path, **options)
        if self.ours(path):
            self.disk.unlink(*self.place(path))
            del self.inodes[os.fspath(path)]

    def adopt(self, tree: Tree) -> None:
        """The files that are there already, on the disk."""
        for name, content in tree.items():
            path = os.path.join(self.root, name.rstrip("/"))
            if name.endswith("/"):
                self.inodes[path] = self.disk.make_folder(*self.place(path))
            else:
                self.inodes[path] = self.disk.create(*self.place(path))
                self.disk.write(self.inodes[path], 0, content)
        self.disk.settle()


@contextmanager
def recorded(
    folder: Path, disk: Disk, after_each: Callable[[], object], failing: set[int] | None = None
) -> Iterator[None]:
    """Inside, what os functions do below a folder is done to the model, too; after_each follows each change.

    Args:
        failing: the numbers, from 0, of the fsyncs that fail with EIO.

    Raises:
        AssertionError: at the end the model is not what lies in the folder: it has missed something.
    """
    recorder = _Recorder(folder, disk, failing or set())
    recorder.adopt(read_tree(folder))

    def following(operation: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            before = disk.version
            try:
                return operation(*args, **options)
            finally:
                if disk.version != before:
                    after_each()

        return call

    for name in OPERATIONS:
        setattr(os, name, following(getattr(recorder, f"os_{name}")))
    try:
        yield
    finally:
        for name, function in recorder.real.items():
            setattr(os, name, function)
    disk.settle()
    (whole,) = disk.states()
    assert whole == read_tree(folder), "the model missed an operation"


def read_tree(folder: Path) -> Tree:
    """What lies in a folder; folders before what is in them."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        tree |= {f"{name}/": b""} if path.is_dir() else {name: path.read_bytes()}
    return tree


def write_tree(tree: Tree, folder: Path) -> None:
    for name, content in sorted(tree.items()):
        if name.endswith("/"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).write_bytes(content)
