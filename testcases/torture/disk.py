"""A model of a disk: what may be on it when the power goes, after each operation of a program that really ran.

Used by recorder.py, which feeds it the operations, and by power.py: ``disk.states()`` are the trees of files that a
power cut at this moment may leave.

The model is as pessimistic as POSIX lets a file system be:
- what was written since the file's last fsync: any subset of its pages is there, the last page may be torn, and
  the size may be there without the data, which then reads as zeros, or without it, which cuts the data off;
- the entries of a folder since the folder's last fsync: any subset. A rename is two entries, a new name and one
  that is gone, and a file's own fsync makes none of its names durable;
- after an fsync that failed, what was to be written is "clean" for the system: no later fsync writes it.
It takes a name in a folder to change at one instant, and a file that is on the disk to stay as it is.

Paper: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014; Rebello et al., "Can Applications Recover
from fsync Failures?", USENIX ATC 2020.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PAGE = 4096
ROOT = 0
PENDING, DURABLE, DROPPED = "pending", "durable", "dropped"  # dropped: by an fsync that failed

Tree = dict[str, bytes]  # relative path → content; a folder is "name/" → b""


@dataclass
class Entry:
    """A folder's name now stands for this inode, or, with None, for nothing."""

    folder: int
    name: str
    inode: int | None
    state: str = PENDING


@dataclass
class Write:
    """Bytes at a place; data None: the file is cut to nothing."""

    offset: int
    data: bytes | None
    state: str = PENDING


@dataclass
class Disk:
    """The model. Its methods are the operations; inode 0 is the folder that the program was given.

    limit: choices of one moment; where there are more, corners and a random choice of so many are taken.
    sampled: moments that had more. version: grows with every operation.
    """

    rng: random.Random
    limit: int = 4096
    entries: list[Entry] = field(default_factory=list)
    files: dict[int, list[Write]] = field(default_factory=dict)
    folders: set[int] = field(default_factory=lambda: {ROOT})
    sampled: int = 0
    version: int = 0
    _shared: dict[bytes, bytes] = field(default_factory=dict)  # equal contents of many states, once in memory

    def _new_inode(self) -> int:
        return len(self.files) + len(self.folders)

    def _enter(self, folder: int, name: str, inode: int | None) -> None:
        self.version += 1
        self.entries.append(Entry(folder, name, inode))

    def create(self, folder: int, name: str) -> int:
        inode = self._new_inode()
        self.files[inode] = []
        self._enter(folder, name, inode)
        return inode

    def make_folder(self, folder: int, name: str) -> int:
        inode = self._new_inode()
        self.folders.add(inode)
        self._enter(folder, name, inode)
        return inode

    def write(self, inode: int, offset: int, data: bytes | None) -> None:
        self.version += 1
        self.files[inode].append(Write(offset, data))

    def rename(self, inode: int, old: tuple[int, str], new: tuple[int, str]) -> None:
        self._enter(*new, inode)
        self._enter(*old, None)

    def link(self, inode: int, folder: int, name: str) -> None:
        self._enter(folder, name, inode)

    def unlink(self, folder: int, name: str) -> None:
        self._enter(folder, name, None)

    def fsync(self, inode: int, works: bool = True) -> None:
        """Everything of this file, or every name in this folder, is on the disk; or will never be by an fsync."""
        self.version += 1
        names = [entry for entry in self.entries if entry.folder == inode]
        changes: list[Any] = names if inode in self.folders else list(self.files[inode])
        for change in changes:
            if change.state == PENDING:
                change.state = DURABLE if works else DROPPED
        self._forget_history()

    def settle(self) -> None:
        """All that was done is on the disk."""
        changes: list[Any] = [*self.entries, *itertools.chain(*self.files.values())]
        for change in changes:
            change.state = DURABLE
        self._forget_history()

    def _forget_history(self) -> None:
        """Of durable entries before every other one only the last for each name matters."""
        first = next((i for i, e in enumerate(self.entries) if e.state != DURABLE), len(self.entries))
        last = {(entry.folder, entry.name): entry for entry in self.entries[:first]}
        self.entries = [e for e in last.values() if e.inode is not None] + self.entries[first:]

    # ---- what may be left

    def states(self) -> Iterator[Tree]:
        """Each tree that a power cut may leave now, once."""
        open_entries = [entry for entry in self.entries if entry.state != DURABLE]
        named = {entry.inode for entry in self.entries}
        contents = {inode: self._contents(inode) for inode in self.files if inode in named}
        loose = [inode for inode, choice in contents.items() if len(choice) > 1]
        seen = set()
        sizes = [2] * len(open_entries) + [len(contents[inode]) for inode in loose]
        for choice in self._choices(sizes):
            there = {id(entry) for entry, taken in zip(open_entries, choice, strict=False) if taken}
            names = {
                (entry.folder, entry.name): entry.inode
                for entry in self.entries
                if entry.state == DURABLE or id(entry) in there
            }
            picked = dict(zip(loose, choice[len(open_entries) :], strict=True))
            tree: Tree = {}
            self._walk(ROOT, "", names, {i: c[picked.get(i, 0)] for i, c in contents.items()}, tree)
            key = tuple(sorted(tree.items()))
            if key not in seen:
                seen.add(key)
                yield tree

    def _walk(self, folder: int, prefix: str, names: dict, contents: dict[int, bytes], tree: Tree) -> None:
        for (parent, name), inode in names.items():
            if parent != folder or inode is None:
                continue
            if inode in self.folders:
                tree[f"{prefix}{name}/"] = b""
                self._walk(inode, f"{prefix}{name}/", names, contents, tree)
            else:
                tree[prefix + name] = contents[inode]

    def _choices(self, sizes: list[int]) -> Iterator[tuple[int, ...]]:
        if math.prod(sizes) <= self.limit:
            yield from itertools.product(*map(range, sizes))
            return
        self.sampled += 1
        least, most = tuple(0 for _ in sizes), tuple(size - 1 for size in sizes)
        yield from (least, most)
        for base, (i, size) in itertools.product((least, most), enumerate(sizes)):
            yield from ((*base[:i], value, *base[i + 1 :]) for value in range(size))  # all but one alike
        for i in range(len(sizes)):  # a prefix of what was done
            yield (*most[:i], *least[i:])
        yield from (tuple(self.rng.randrange(size) for size in sizes) for _ in range(self.limit))

    def _contents(self, inode: int) -> list[bytes]:
        """The contents that a file may have; the first is what is there for certain, the last what was written."""
        writes = self.files[inode]
        old = _applied(write for write in writes if write.state == DURABLE)
        new = _applied(writes)
        if old == new:
            return [new]
        starts = range(0, len(new), PAGE)
        sizes = [*starts, *((start + min(start + PAGE, len(new))) // 2 for start in starts)]
        least = 0 if any(write.data is None and write.state != DURABLE for write in writes) else len(old)
        found = [old, *(new[:size] for size in sizes if size >= least)]  # it grew so far, also into a page
        for kept in itertools.product((False, True), repeat=len(starts)) if len(starts) <= 4 else ():
            found.append(_mixed(old, new, {s: PAGE for s, keep in zip(starts, kept, strict=True) if keep}))
        for torn in starts:  # all pages but one, and half of that
            found.append(_mixed(old, new, {s: PAGE // 2 if s == torn else PAGE for s in starts}))
        ordered = [old, *(content for content in found if content not in (old, new)), new]
        return list(dict.fromkeys(self._shared.setdefault(content, content) for content in ordered))


def _applied(writes: Any) -> bytes:
    content = bytearray()
    for write in writes:
        if write.data is None:
            content.clear()
            continue
        end = write.offset + len(write.data)
        content.extend(bytes(max(0, end - len(content))))
        content[write.offset : end] = write.data
    return bytes(content)


def _mixed(old: bytes, new: bytes, kept: dict[int, int]) -> bytes:
    """The size of the new content; from each place on so many bytes of it, elsewhere the old ones or zeros."""
    content = bytearray(old[: len(new)].ljust(len(new), b"\0"))
    for start, count in kept.items():
        content[start : start + count] = new[start : start + count]
    return bytes(content[: len(new)])
