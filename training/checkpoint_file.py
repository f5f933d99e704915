"""Checkpoints as files: written whole or not at all, verified before they are read, loaded without running code.

``save_checkpoint(state, path)``, ``load_checkpoint(path)``, ``verify_checkpoint(path)``. durable.py has the order
of the writes, checkpoint.py the files of a whole run, matching.py whether a state fits a model.

A plain ``torch.load(path)`` reads every file, and ``sha256sum -c`` checks it. The digest is not optional: of 400
single flipped bits in a checkpoint, torch.load notices 2.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from training.durable import digest_path, make_folder, write_with_digest
from training.regular import open_regular
from training.untrusted import Untrusted, is_finite, load_untrusted

PLAIN = (type(None), bool, int, float, str, bytes)
LONGEST_DIGEST = 1 << 16  # bytes of a digest file; ours has two lines at most
FACTS = ("epoch", "global_step", "train_loss", "val_loss", "best_metric")

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, unsafe, or made for another model. One sentence says which."""


# ---- copies


def snapshot(state: Any, into: Any = None) -> Any:
    """A copy in host memory that later training cannot change, of nothing but what safe loading accepts.

    `model.state_dict()` does not copy: its tensors *are* the weights. A tensor that occurs twice (tied weights)
    is copied once, so a snapshot needs no more memory than the state.

    Args:
        state: tensors, None, bool, int, float, str, bytes, numpy's scalars (which become Python's), and dicts,
            lists, tuples and sets of them. OrderedDict and Counter stay what they are, other Mappings become dicts.
        into: an older snapshot that nobody needs any more. Its tensors are overwritten where they fit: memory
            that is there already is several times faster than new memory.

    Raises:
        ValueError: for anything else, with its place, such as "state.config.path": `weights_only=True` would
            refuse the whole file, months later.
    """
    return _copy(state, "state", into, _Copies())


def _copy(value: Any, name: str, into: Any, copies: _Copies) -> Any:
    if isinstance(value, Tensor):
        return _copy_tensor(value, name, into, copies)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        if wrong := [key for key in value if type(key) not in (int, str)]:
            raise ValueError(f"{name} has the key {wrong[0]!r}: keys of a checkpoint are int or str")
        old = into if isinstance(into, Mapping) else {}
        items = {key: _copy(item, f"{name}.{key}", old.get(key), copies) for key, item in value.items()}
        if type(value) is Counter:
            return Counter(items)
        if type(value) is not OrderedDict:
            return items
        ordered: Any = OrderedDict(items)
        if hasattr(value, "_metadata"):  # the versions of the modules, which load_state_dict asks for
            ordered._metadata = _copy(value._metadata, f"{name}._metadata", None, copies)
        return ordered
    if type(value) in (list, tuple, torch.Size):
        olds = into if isinstance(into, list | tuple) and len(into) == len(value) else [None] * len(value)
        pairs = enumerate(zip(value, olds, strict=True))
        return type(value)([_copy(item, f"{name}.{i}", old, copies) for i, (item, old) in pairs])
    if type(value) is set:
        return {_copy(item, name, None, copies) for item in value}
    if type(value) not in PLAIN:  # not isinstance: a subclass would be pickled by its own name
        raise ValueError(f"{name} is a {type(value).__name__}, which safe loading refuses: make it plain")
    if value == b"" or (type(value) is int and value.bit_length() > 2000):  # as pickled, torch reads neither
        raise ValueError(f"{name} is an empty bytes or a huge int, which safe loading refuses")
    return value


def _copy_tensor(value: Tensor, name: str, into: Any, copies: _Copies) -> Tensor:
    value = value.detach()
    if type(value) is not Tensor or value.layout != torch.strided:
        raise ValueError(
            f"{name} is a {type(value).__name__} ({value.layout}): a checkpoint holds dense tensors"
        )
    key = (
        value.data_ptr(),
        value.device,
        value.dtype,
        value.shape,
        value.stride(),
        value.is_conj(),
        value.is_neg(),
    )
    if key not in copies.of:
        fits = type(into) is Tensor and into.shape == value.shape and into.dtype == value.dtype
        if fits and id(into) not in copies.overwritten:  # it may stand for two tensors that were tied then
            copies.overwritten.add(id(into))
            copies.of[key] = into.copy_(value)
        else:
            copies.of[key] = value.to("cpu", copy=True)  # .cpu() alone copies nothing that is there already
    return copies.of[key]


class _Copies:
    """The copies of one snapshot, by what they are copies of."""

    def __init__(self) -> None:
        self.of: dict[tuple, Tensor] = {}
        self.overwritten: set[int] = set()


# ---- files


def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Save a state under a name, over an older checkpoint if there is one. See durable.write_with_digest.

    Args:
        state: see `snapshot`, which is applied: tensors of a GPU are copied, views lose what is around them.
        path: the name, such as "runs/demo/epoch_2_step_500.pt". Missing folders are made.

    Returns:
        The SHA-256 of the file, in hex.

    Raises:
        ValueError: a value that safe loading would refuse. Nothing is written.
        OSError: the system could not write. What the name held before is still valid.
    """
    return write_snapshot(snapshot(state), path)


def write_snapshot(state: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """`save_checkpoint` for what `snapshot` has returned: no second copy."""
    path = Path(path)
    make_folder(path.parent)
    return write_with_digest(path, lambda file: torch.save(state, file))


def load_checkpoint(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Verify a checkpoint, then load it, without running any code that may be inside.

    A file without a digest beside it, as a plain torch script writes it, is loaded with a warning in the log.

    Args:
        path: the checkpoint.
        map_location: the device for all tensors; also for a file that was saved on a GPU.

    Raises:
        CheckpointError: the file is missing, damaged, or not a dict that safe loading accepts.
    """
    state, unverified = read_checkpoint(path, map_location)
    if unverified is not None:
        log.warning(unverified)
    return state


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> tuple[dict[str, Any], str | None]:
    """`load_checkpoint` that does not log; and a sentence for a file without a digest, None for a verified one."""
    with opened(path) as (file, digest):
        state = _unpickle(path, file, map_location)
        missing = f"{path} could not be verified: there is no {digest_path(path).name}"
        return state, missing if digest is None else None


def verify_checkpoint(path: str | os.PathLike[str]) -> str:
    """Check that every bit is as it was saved; unpickles nothing. Returns the SHA-256 in hex.

    Raises:
        CheckpointError: the file is missing, damaged, or has no digest beside it: no digest, no trust.
    """
    with opened(path) as (_, digest):
        if digest is None:
            raise CheckpointError(f"{path} cannot be verified: there is no {digest_path(path).name}")
        return digest


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, str | None]]:
    """The open file, at its beginning, once its bytes are known to be those that were saved; and its digest.

    What was verified is what is read: the file stays open, and a file that replaces it meanwhile is another one.
    """
    while True:
        with _reading(path), open_regular(path) as file:
            lines = _digest_lines(path)
            digest = None if lines is None else hashlib.file_digest(file, "sha256").hexdigest()
            if (lines is None or digest not in lines) and _replaced(path, file):
                continue  # the digest belongs to a newer file
            if lines is not None and digest not in lines:
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one beside it")
            file.seek(0)
            yield file, digest
            return


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _digest_lines(path: str | os.PathLike[str]) -> set[str] | None:
    """The digests in the file beside a checkpoint; None if there is none."""
    try:
        with open_regular(digest_path(path)) as file:
            text = file.read(LONGEST_DIGEST + 1).decode(errors="replace")
    except FileNotFoundError:
        return None
    if len(text) > LONGEST_DIGEST:
        raise CheckpointError(f"{digest_path(path)} is larger than a digest is")
    return {line.partition(" ")[0].lower() for line in text.splitlines()}


def _replaced(path: str | os.PathLike[str], file: BinaryIO) -> bool:
    return not os.path.samestat(os.stat(path), os.fstat(file.fileno()))


def _unpickle(
    path: str | os.PathLike[str], file: BinaryIO, map_location: str | torch.device = "cpu", mmap: bool = False
) -> dict[str, Any]:
    try:
        state = load_untrusted(file, os.fspath(path) if mmap else file, map_location, mmap)
    except Untrusted as error:
        raise CheckpointError(f"{path} cannot be loaded safely: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__} and not a dict")
    return state


# ---- what is inside


@dataclass(frozen=True)
class Report:
    """What is known of a checkpoint file.

    problem: one sentence, None for a good file: verified, loadable, its weights and moments finite.
    loadable: whether load_checkpoint would read it; a good file is, and also one without a digest.
    facts: epoch, global_step, train_loss, val_loss and best_metric, as far as the file has them as numbers.
    """

    path: Path
    problem: str | None
    loadable: bool = False
    facts: dict[str, int | float] = field(default_factory=dict)


def examine(path: str | os.PathLike[str]) -> Report:
    """Verify a checkpoint and look inside: at weights and moments, whether they are finite. Raises nothing."""
    path = Path(path)
    try:
        with opened(path) as (file, digest):
            state = _unpickle(
                path, file, mmap=digest is not None
            )  # only verified bytes are mapped into memory
    except CheckpointError as error:
        return Report(path, str(error))
    return report(path, state, verified=digest is not None)


def report(path: Path, state: Mapping[str, Any], verified: bool = True) -> Report:
    """The Report on a file that is known to hold `state`."""
    facts = {key: state[key] for key in FACTS if type(state.get(key)) in (int, float)}
    problem = None
    if not is_finite(state):
        problem = f"{path} holds weights, moments or a loss scale that are inf or NaN"
    elif not verified:
        problem = f"{path} cannot be verified: there is no {digest_path(path).name}"
    return Report(path, problem, True, facts)
