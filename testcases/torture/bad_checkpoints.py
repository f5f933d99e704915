"""Bad inputs, second part: checkpoints that are hostile, absurd, or of something else. Used by bad_inputs.py."""

# ruff: noqa: E501 (one input a line)
from __future__ import annotations

import builtins
import codecs
import io
import os
import shutil
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from testcases.torture.bad_files import (
    MARKER,
    Call,
    Case,
    Place,
    Storage,
    absurd_size,
    archive,
    deep_pickle,
    many_records,
    patched,
    pickled,
    state_with,
    tensor,
    two_directories,
)
from training.durable import digest_path

CODE = Call(os.system, f"touch {MARKER}")
GOOD = pickled(state_with({"w": tensor((1,), (1,))}))
ALLOCATES = pickled(state_with({}, waste=Call(bytearray, 2**31)))


def with_ordered(**attributes: Any) -> Call:
    """An OrderedDict whose own attributes are these: `BUILD` sets any."""
    return Call(OrderedDict, state=attributes)


def laughs(depth: int) -> list:
    """2^depth lists, of which depth are there."""
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def endless() -> dict:
    value: dict = {}
    value["self"] = value
    return value


def bare(name: str, pickle_bytes: bytes, says: str, **options: Any) -> tuple:
    return name, lambda path: archive(path, pickle_bytes, **options), says


def written(name: str, write: Callable[[Path], object], says: str) -> tuple:
    return name, write, says


def legacy(path: Path) -> None:
    torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def zip_in_zip(path: Path) -> None:
    inner = archive(path, GOOD).read_bytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive.zip", inner)


def comment(path: Path) -> None:
    archive(path, GOOD)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"PK\5\6" + bytes(18)


def duplicates(path: Path) -> None:
    archive(path, GOOD)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/1", pickled(CODE))
    patched(path, b"archive/data/1", b"archive/data/0")
    patched(path, b"archive/data/1", b"archive/data/0")


def spoil(name: str) -> Callable[[Path], object]:
    """Two records of one name that differ in the case of its letters: torch looks names up without it."""
    return lambda path: archive(path, GOOD, {name: ALLOCATES})


def torchscript(path: Path) -> None:
    archive(path, GOOD, {"constants.pkl": pickled(())})


def many(count: int) -> bytes:
    return pickled(state_with({}, config={f"k{number}": number for number in range(count)}))


def many_dicts(count: int) -> bytes:
    return b"\x80\x02(" + b"}" * count + b"t."


def named(name: str) -> Any:
    """A global function of torch._utils by its name."""
    return getattr(torch._utils, name)


# (name, make(path), a part of the sentence): files that may hold or do anything, without a digest beside them
HOSTILE: list[tuple[str, Callable[[Path], object], str]] = [
    ("a plain pickle that runs code", lambda path: path.write_bytes(pickled(CODE)), "no archive"),
    bare("a pickle that calls os.system", pickled({"x": CODE}), "posix.system"),
    bare("a pickle that calls eval", pickled({"x": Call(builtins.eval, f"open('{MARKER}', 'w')")}), "eval"),
    bare("a pickle that calls getattr", pickled({"x": Call(getattr, 1, "real")}), "getattr"),
    bare("a bytearray of 2 GiB", ALLOCATES, "bytearray"),
    bare("a tensor of 2^33 bytes that were never saved", pickled({"x": Call(torch.Tensor, 2**31)}), "torch"),
    bare("a storage of 2^33 bytes", pickled({"x": Call(torch.UntypedStorage, 2**33)}), "torch"),
    bare("a tensor on the meta device", pickled(state_with({"w": Call(named("_rebuild_meta_tensor_no_storage"), torch.float32, (1,), (1,), False)})), "_rebuild_meta"),
    bare("a sparse tensor", pickled(state_with({"w": Call(named("_rebuild_sparse_tensor"), Call(torch.serialization._get_layout, "torch.sparse_coo"), (tensor((1, 1), (1, 1)), tensor((1,), (1,)), (2**40,)))})), "sparse"),
    bare("a tensor of a wrapper class", pickled({"w": Call(named("_rebuild_wrapper_subclass"), torch.Tensor, torch.float32, (2**40,), (1,), 0, Call(torch.serialization._get_layout, "torch.strided"), Call(torch.device, "cpu"), False)}), "_rebuild_wrapper"),
    bare("a text that takes hours to encode", pickled({"x": Call(codecs.encode, "".join(map(chr, range(0x4E00, 0x9FFF))) * 20, "punycode")}), "punycode"),
    bare("2^40 elements on a storage of one", pickled(state_with({"w": tensor((2**40,), (0,))})), "larger than"),
    bare("2^126 elements", pickled(state_with({"w": tensor((2**63 - 1, 2**63 - 1), (0, 0))})), ""),
    bare("a tensor beyond the end of its storage", pickled(state_with({"w": tensor((1000,), (1,))})), ""),
    bare("a tensor before the start of its storage", pickled(state_with({"w": tensor((1,), (1,), offset=-9)})), ""),
    bare("a tensor without its storage", pickled(state_with({"w": tensor((1,), (1,), Storage("7", 1))})), ""),
    bare("a storage longer than its record", pickled(state_with({"w": tensor((9,), (1,), Storage("0", 9))})), ""),
    bare("a storage in a file outside of the archive", pickled(state_with({"w": tensor((1,), (1,), Storage("../../text.txt", 1))})), ""),
    bare("records with paths out of the folder", pickled({"x": CODE}), "system", records={"../../../" + MARKER: b"x"}),
    bare("lists that are 2^40 lists", pickled(state_with({}, config=laughs(40))), "refer to"),
    bare("a dict that holds itself", pickled(state_with({}, config=endless())), "deep"),
    bare("lists 100,000 deep", deep_pickle(100_000), "deep"),
    bare("a dict with 10^6 keys", many(10**6), "memory"),
    bare("10^6 dicts in a byte each", many_dicts(10**6), "memory"),
    bare("a dict whose method is a number", pickled(state_with(with_ordered(items=3))), "attribute"),
    bare("a newer pickle protocol", pickled({"w": 1}, protocol=4), "protocol"),
    bare("a pickle that ends in the middle", GOOD[:-5], "pickle"),
    bare("a pickle of nothing but a stop", b"\x80\x02.", ""),
    bare("a pickle under another name", pickled({"x": CODE}), "data.pkl", pickle_name="DATA.PKL"),
    bare("1 GB of zeros, deflated", GOOD, "compressed", records={"data/1": bytes(2**30)}, compression=zipfile.ZIP_DEFLATED),
    written("a second pickle, in capitals", spoil("DATA.PKL"), "twice"),
    written("a second pickle, in another folder", spoil("../other/data.pkl"), "data.pkl"),
    written("the same record twice", duplicates, "twice"),
    written("two tables of contents", lambda path: two_directories(path, GOOD, ALLOCATES), "table of contents"),
    written("a size of 4 GB in the table of contents", lambda path: absurd_size(path, 2**32 - 2), "larger than"),
    written("10^6 records", lambda path: many_records(path, 10**6), "memory"),
    written("a comment behind the archive", comment, "table of contents"),
    written("an archive in an archive", zip_in_zip, "data.pkl"),
    written("TorchScript", torchscript, "TorchScript"),
    written("a tar archive", tar, "no archive"),
    written("a file of an old torch", legacy, "no archive"),
    written("text", lambda path: path.write_text("to be or not to be\n"), "no archive"),
    written("nothing", lambda path: path.touch(), "empty"),
]  # fmt: skip


def hostile_cases() -> list[Case]:
    """Each hostile file, resumed from."""

    def resume(make: Callable[[Path], object]) -> Callable[[Place], list[str]]:
        def prepared(place: Place) -> list[str]:
            path = place.folder / "x.pt"
            make(path)
            return place.pretrain("--resume", str(path))

        return prepared

    heavy = ("10^6 records", "1 GB of zeros, deflated")
    return [
        Case("checkpoint file", name, resume(make), says or "x.pt", slow=name in heavy)
        for name, make, says in HOSTILE
    ]


# ---- files around a checkpoint that is good or nearly


def resumed(prepare: Callable[[Place], Path | str]) -> Callable[[Place], list[str]]:
    return lambda place: place.pretrain("--resume", str(prepare(place)))


def copied(place: Place, digest: bool = True) -> Path:
    path = place.folder / place.good().name
    shutil.copy(place.good(), path)
    if digest:
        shutil.copy(digest_path(place.good()), digest_path(path))
    return path


def cut(place: Place, digest: bool) -> Path:
    path = copied(place, digest)
    os.truncate(path, path.stat().st_size // 2)
    return path


def flipped(place: Place) -> Path:
    path = copied(place)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def with_digest(content: bytes | None) -> Callable[[Place], Path]:
    """The good checkpoint beside such a digest file; None: a FIFO."""

    def prepared(place: Place) -> Path:
        path = copied(place, digest=False)
        if content is None:
            os.mkfifo(digest_path(path))
        else:
            digest_path(path).write_bytes(content)
        return path

    return prepared


def fifo(place: Place) -> Path:
    os.mkfifo(place.folder / "x.pt")
    return place.folder / "x.pt"


def link(target: str) -> Callable[[Place], Path]:
    def prepared(place: Place) -> Path:
        (place.folder / "x.pt").symlink_to(target)
        return place.folder / "x.pt"

    return prepared


def folder(place: Place) -> Path:
    (place.folder / "x.pt").mkdir()
    return place.folder / "x.pt"


def huge_digest(place: Place) -> Path:
    path = copied(place, digest=False)
    with open(digest_path(path), "wb") as file:
        file.truncate(2**33)
    return path


def sparse(place: Place) -> Path:
    with open(place.folder / "x.pt", "wb") as file:
        file.truncate(2**40)
    return place.folder / "x.pt"


def file_cases() -> list[Case]:
    found: list[tuple[str, Callable[[Place], Path | str], str]] = [
        ("not there", lambda place: place.folder / "x.pt", "x.pt does not exist"),
        ("a name of 300 letters", lambda place: "x" * 300, "cannot be read"),
        ("a folder", folder, "x.pt cannot be read: Is a directory"),
        ("a FIFO", fifo, "x.pt cannot be read: Not a regular file"),
        ("a device without end", link("/dev/zero"), "x.pt cannot be read: Not a regular file"),
        ("a link to itself", link("x.pt"), "symbolic links"),
        ("a link to nothing", link("gone.pt"), "does not exist"),
        ("a terabyte of nothing", sparse, "x.pt"),
        ("cut in half", lambda place: cut(place, True), "is damaged"),
        ("cut in half, without a digest", lambda place: cut(place, False), "end of the archive"),
        ("a bit flipped", flipped, "is damaged"),
        ("the digest of another file", with_digest(b"0" * 64 + b"  other.pt\n"), "is damaged"),
        ("an empty digest", with_digest(b""), "is damaged"),
        ("a digest that is binary", with_digest(bytes(range(256)) * 40), "is damaged"),
        ("a digest that is a FIFO", with_digest(None), "sha256 cannot be read: Not a regular file"),
        ("a digest of 8 GB", huge_digest, "sha256"),
    ]
    cases = [Case("checkpoint file", name, resumed(prepare), says) for name, prepare, says in found]
    picked = ("not there", "a FIFO")
    cases += [
        Case("checkpoint file", f"{case.name} (fresh)", case.make, case.says, fresh=True)
        for case in cases
        if case.name in picked
    ]
    return cases


def cases() -> list[Case]:
    return [*hostile_cases(), *file_cases()]
