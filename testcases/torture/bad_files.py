"""Files that no honest program writes: archives and pickles made by hand, out of pieces that are each legal.

Used by bad_inputs.py and bad_checkpoints.py; nothing here is ever loaded in this process.
"""

from __future__ import annotations

import copy
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from testcases.training.work import TINY

MARKER = "RAN"  # what code inside a file would make
TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps. " * 80


@dataclass(frozen=True)
class Place:
    """Where a trial finds things.

    folder: new and empty, the working directory. run: the folder of a good run. scratch: for the harness.
    """

    folder: Path
    run: Path
    scratch: Path
    text: Path

    def pretrain(self, *flags: str) -> list[str]:
        """A command that would train."""
        good = ["--data", str(self.text), "--output_dir", str(self.folder / "new"), "--max_steps=4"]
        return ["pretrain", *TINY, *good, *flags]

    def good(self) -> Path:
        """The good run's checkpoint."""
        return next(self.run.glob("epoch_*.pt"))

    def state(self) -> dict[str, Any]:
        """What it holds, to be spoilt."""
        return copy.deepcopy(torch.load(self.good(), weights_only=True))


@dataclass(frozen=True)
class Case:
    """One bad input.

    make: makes it, and returns the arguments of `python -m training`. says: a part of the sentence.
    status: 2, or 1 where `checkpoints verify` reports on standard output.
    fresh: in an interpreter of its own. slow: not in the sampled part.
    """

    kind: str
    name: str
    make: Callable[[Place], list[str]]
    says: str
    status: int = 2
    fresh: bool = False
    slow: bool = False


# ---- pickles


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple:
        return (self.function, self.arguments, *([] if self.state is None else [self.state]))


@dataclass(frozen=True)
class Storage:
    """Pickled as the record data/KEY of the archive."""

    key: str
    count: int
    kind: Any = torch.FloatStorage


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Storage):
            return ("storage", value.kind, value.key, "cpu", value.count)
        return None


def pickled(value: Any, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], storage: Storage | None = None, offset: int = 0
) -> Call:
    """A tensor as torch pickles it; nothing checks that the numbers make sense."""
    storage = storage or Storage("0", 1)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def state_with(weights: Any, **more: Any) -> dict[str, Any]:
    return {"model_state_dict": weights, "epoch": 0, "global_step": 1, **more}


def deep_pickle(depth: int) -> bytes:
    """{"config": [[[…]]]}, by hand: pickling it would recurse."""
    lists = b"]" * depth + b"a" * (depth - 1)
    return b"\x80\x02}X\x06\x00\x00\x00config" + lists + b"s."


# ---- archives

FLOAT = struct.pack("<f", 1.0)


def archive(
    path: Path,
    pickle_bytes: bytes,
    records: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    pickle_name: str = "data.pkl",
) -> Path:
    """The archive that torch.save writes, around any pickle."""
    content = {pickle_name: pickle_bytes, "byteorder": b"little", "version": b"3\n", "data/0": FLOAT}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in {**content, **(records or {})}.items():
            file.writestr(f"archive/{name}", data)
    return path


def two_directories(path: Path, shown: bytes, real: bytes) -> Path:
    """Two archives in one file. Its end names the directory of the second; the first one's is nearer to it.

    Python's zipfile takes the directory that ends where the end begins, torch the one at the offset given.
    """
    archive(path, real)
    first = path.read_bytes()
    second = archive(path, shown).read_bytes()
    end = first.rfind(b"PK\x05\x06")
    at = struct.unpack("<I", first[end + 16 : end + 20])[0]
    path.write_bytes(first[:end] + second[: second.rfind(b"PK\x05\x06")] + first[end:])
    assert first[end + 16 : end + 20] == struct.pack("<I", at)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """The file with the last `old` replaced by `new`."""
    before, found, after = path.read_bytes().rpartition(old)
    assert found, f"{old!r} is not in {path}"
    path.write_bytes(before + new + after)
    return path


def absurd_size(path: Path, size: int) -> Path:
    """A record of which the directory says that it holds so many bytes."""
    archive(path, pickled(state_with({"w": tensor((1,), (1,))})), {"data/9": b"x"})
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", size, size)
    path.write_bytes(data)
    return path


def many_records(path: Path, count: int) -> Path:
    """An archive with so many empty records, each for 100 bytes of file and a kilobyte of memory."""
    local, central = bytearray(archive(path, pickled({})).read_bytes()), bytearray()
    end = local.rfind(b"PK\x05\x06")
    size, at = struct.unpack("<II", local[end + 12 : end + 20])
    central, local = local[at : at + size], local[:at]
    for number in range(count):
        name = f"archive/{number:x}".encode()
        entry = (20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, len(local))
        central += struct.pack("<4s6H3I5H2I", b"PK\1\2", *entry) + name
        local += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    total = count + 4
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, total, total, len(central), len(local))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(local) + len(central), 1)
    ending = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, len(central), len(local), 0)
    path.write_bytes(local + central + record + locator + ending)
    return path
