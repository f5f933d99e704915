"""Damage after a save: flipped bits, lost pages, cut and extended files; and whether anybody notices.

Run: ``python -m testcases.torture --only damage``.

Two checkpoints lie in a folder, the newer one is damaged. It must be refused, by the code that a resume runs, the
older one must be taken, and a sentence must name the bad file. The peers are what others read the same bytes with.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import random
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from testcases.torture.matrix import Budget, Row
from testcases.torture.power import quiet
from testcases.torture.resume import difference
from testcases.training.checkpoint_faults import make_state, value_of
from training.checkpoint import digest_path, examine, save_checkpoint
from training.resume import find_start

SMALL, LARGE = 48, 360  # sides of the square tensors: 21 kB and 1 MB
SECTOR, PAGE = 512, 4096
FLIPS_BAR, LOSSES_BAR = 160_000, 500
PEER_TRIALS = 400
SAMPLE = 4000  # bits
Damage = tuple[str, bytes]


class Folder:
    """epoch_1_step_1.pt, small and good, and epoch_1_step_2.pt, which the trials damage."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.path = folder, folder / "epoch_1_step_2.pt"
        save_checkpoint(make_state(1.0) | {"global_step": 1}, folder / "epoch_1_step_1.pt")
        save_checkpoint(make_state(3.0, side) | {"global_step": 2}, self.path)
        older = folder / "older.pt"
        save_checkpoint(make_state(1.0, side) | {"global_step": 2}, older)
        self.content, self.older = self.path.read_bytes(), older.read_bytes()
        self.digest = digest_path(self.path).read_bytes()

    def resumes_from(self) -> tuple[str, float, list[str]]:
        """What `--resume auto` would take: its name, the value of all its tensors (or NaN), and the sentences."""
        start = find_start("auto", False, self.folder)
        assert start.path is not None
        try:
            value = value_of(start.state)
        except (AssertionError, LookupError):  # a mixture, or other names
            value = math.nan
        return start.path.name, value, list(start.notes)

    def falls_back(self) -> str:
        """Nothing if the older one is taken and the newer one named, else what happened."""
        name, value, notes = self.resumes_from()
        if (name, value) != ("epoch_1_step_1.pt", 1.0):
            return f"wrong: {name} with {value} was taken"
        return "" if len(notes) == 1 and str(self.path) in notes[0] else f"the sentences are {notes}"


def rows(budget: Budget) -> Iterator[Row]:
    torch.set_num_threads(1)
    rng = random.Random(budget.seed)
    small, large = (Folder(budget.folder / f"damage-{side}", side) for side in (SMALL, LARGE))
    with quiet():
        yield flips(small, rng, budget)
        yield flips_of_the_digest(small, rng, budget)
        yield losses(small, large, rng, budget)


# ---- bits


def flips(folder: Folder, rng: random.Random, budget: Budget) -> Row:
    """Every bit of the small checkpoint, in the file itself, through `examine`; every 97th through a resume, too."""
    began, failures = time.perf_counter(), list[str]()
    bits = range(8 * len(folder.content))
    chosen = sorted(rng.sample(bits, SAMPLE)) if budget.sample else bits
    descriptor = os.open(folder.path, os.O_RDWR)
    for number, bit in enumerate(chosen):
        place, mask = divmod(bit, 8)
        byte = folder.content[place]
        os.pwrite(descriptor, bytes([byte ^ 1 << mask]), place)
        found = examine(folder.path)
        if found.problem is None or found.loadable:
            failures.append(f"wrong: bit {mask} of byte {place}: it was not refused")
        if number % 97 == 0 and (problem := folder.falls_back()):
            failures.append(f"bit {mask} of byte {place}: {problem}")
        os.pwrite(descriptor, bytes([byte]), place)
    os.close(descriptor)
    if folder.resumes_from()[:2] != ("epoch_1_step_2.pt", 3.0):
        failures.append("the file as it was is refused")
    seconds = time.perf_counter() - began
    peers = {} if budget.sample else peer_flips(folder, rng)
    note = f"a file of {len(folder.content):,} bytes"
    return Row("flipped bits: each of a checkpoint", len(chosen), FLIPS_BAR, failures, seconds, peers, note)


def flips_of_the_digest(folder: Folder, rng: random.Random, budget: Budget) -> Row:
    """Every bit and every length of the digest file: the checkpoint is refused, or is taken and right."""
    began, failures, refused = time.perf_counter(), list[str](), 0
    good, path = folder.digest, digest_path(folder.path)
    damaged = [flipped(good, bit) for bit in range(8 * len(good))] + [good[:n] for n in range(len(good))]
    damaged = rng.sample(damaged, 150) if budget.sample else damaged
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        name, value, notes = folder.resumes_from()
        if name == "epoch_1_step_1.pt" and len(notes) == 1 and str(folder.path) in notes[0]:
            refused += 1
        elif (name, value) != ("epoch_1_step_2.pt", 3.0):
            failures.append(f"damage {number} of the digest: {name} with {value}, {notes}")
        elif content[:64].lower() != good[:64]:
            failures.append(f"damage {number} of the digest: it was not refused")
    path.write_bytes(good)
    note = f"{refused} refused; in the others the digest itself is unharmed, the file too"
    seconds = time.perf_counter() - began
    return Row("flipped bits and cuts: the digest", len(damaged), 0, failures, seconds, note=note)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- larger damage


def losses(small: Folder, large: Folder, rng: random.Random, budget: Budget) -> Row:
    """Cut, holed, extended and mixed files, all through a resume."""
    began, failures = time.perf_counter(), list[str]()
    trials = [(small, damage) for damage in itertools.chain(cuts(small), holes(small, SECTOR), others(small))]
    trials += [(large, damage) for damage in itertools.chain(holes(large, PAGE), mixtures(large))]
    trials = rng.sample(trials, 150) if budget.sample else trials
    by_torch = Counter[str]()
    for folder, (name, content) in trials:
        folder.path.write_bytes(content)
        if problem := folder.falls_back():
            failures.append(f"{name}: {problem}")
        if not budget.sample:
            truth = make_state(3.0, SMALL if folder is small else LARGE) | {"global_step": 2}
            by_torch[verdict(partial(torch.load, folder.path), truth)] += 1
    for folder in (small, large):
        folder.path.write_bytes(folder.content)
    seconds = time.perf_counter() - began
    peers = {} if budget.sample else {"torch.load": in_words(by_torch)}
    return Row("cuts, lost pages, garbage, mixtures", len(trials), LOSSES_BAR, failures, seconds, peers)


def cuts(folder: Folder) -> Iterator[Damage]:
    """At every sector, and at every length near a boundary of the zip's records."""
    content = folder.content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = [record.header_offset for record in archive.infolist()] + [archive.start_dir]
    near = {start + offset for start in starts for offset in range(-8, 9)}
    near |= {len(content) - n for n in range(1, 32)} | set(range(0, len(content), SECTOR))
    for length in sorted(length for length in near if 0 <= length < len(content)):
        yield f"cut to {length} bytes", content[:length]


def holes(folder: Folder, size: int) -> Iterator[Damage]:
    """Zeros where a block was."""
    content = folder.content
    for start in range(0, len(content), size):
        zeros = bytes(len(content[start : start + size]))
        if content[start : start + size] != zeros:
            yield f"{size} bytes lost at {start}", content[:start] + zeros + content[start + size :]


def mixtures(folder: Folder) -> Iterator[Damage]:
    """A page, or everything up to it, of an older file."""
    new, old = folder.content, folder.older
    for start in range(0, len(new), PAGE):
        end = start + PAGE
        if new[start:end] != old[start:end]:
            yield f"an older page at {start}", new[:start] + old[start:end] + new[end:]
            yield f"older up to {end}", old[:end] + new[end:]


def others(folder: Folder) -> Iterator[Damage]:
    content = folder.content
    for count in (1, 2, 16, SECTOR, PAGE):
        yield f"{count} zeros after it", content + bytes(count)
        yield f"{count} bytes after it", content + random.Random(count).randbytes(count)
        yield f"{count} bytes before it", random.Random(count).randbytes(count) + content
    yield "twice the file", content * 2
    yield "the older file", folder.older
    yield "all zeros", bytes(len(content))


# ---- what others notice


def verdict(load: Callable[[], object], truth: object) -> str:
    """noticed, unharmed or silently wrong."""
    try:
        state = load()
    except (Exception, CheckpointException):  # whatever it is: it was noticed; the latter is no Exception
        return "noticed"
    return "unharmed" if difference(state, truth) is None else "silently wrong"


def in_words(found: Counter[str]) -> str:
    kinds = ("noticed", "unharmed", "silently wrong")
    return ", ".join(f"{found[kind]} {kind}" for kind in kinds if found[kind]) + f" of {found.total()}"


def peer_flips(folder: Folder, rng: random.Random) -> dict[str, str]:
    """The same number of single flipped bits, each in a place of its own, read by others."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    truth = make_state(3.0, SMALL) | {"global_step": 2}
    shards = folder.folder / "dcp"
    tensors = {f"{i}": torch.full((SMALL, SMALL), 3.0) for i in range(3)}
    dcp_save(tensors, checkpoint_id=shards, no_dist=True)
    shard = next(shards.glob("*.distcp"))

    def load_shards() -> object:
        loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        dcp_load(loaded, checkpoint_id=shards, no_dist=True)
        return loaded

    def test_zip() -> object:
        with zipfile.ZipFile(folder.path) as archive:
            if archive.testzip() is not None:
                raise ValueError("a wrong CRC")
        return torch.load(folder.path)

    results = {}
    for name, path, load, right in (
        ("torch.load", folder.path, lambda: torch.load(folder.path), truth),
        ("zipfile.testzip, then torch.load", folder.path, test_zip, truth),
        ("dcp.load", shard, load_shards, tensors),
    ):
        content, found = path.read_bytes(), Counter[str]()
        for bit in rng.sample(range(8 * len(content)), PEER_TRIALS):
            path.write_bytes(flipped(content, bit))
            found[verdict(load, right)] += 1
        path.write_bytes(content)
        results[name] = in_words(found)
    return results
