"""Where a command begins: at nothing, or at a checkpoint, which `--resume auto` or a path names.

Used by pretrain.py: ``start = find_start(resume, reset_optimizer, output_dir)``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint import BEST, NAME, CheckpointError, CheckpointManager, Found, examine
from training.checkpoint_file import read_checkpoint
from training.config import CONFIG_FILE
from training.data import VOCAB_SIZE
from training.durable import digest_path, fsync_folder, make_folder
from training.logger import METRICS_FILE
from training.structure import state_problem
from training.untrusted import is_finite

SHOWN = 3  # bad checkpoints in one message


@dataclass(frozen=True)
class Start:
    """The checkpoint to go on from.

    path, state: of the checkpoint; None and {} for a new run.
    notes: what a person should know, a sentence each.
    superseded: later checkpoints in output_dir, which this run leaves behind.
    """

    path: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    superseded: tuple[Path, ...] = ()

    @property
    def global_step(self) -> int:
        return self.state.get("global_step", 0)


def find_start(resume: str | None, reset_optimizer: bool, output_dir: Path) -> Start:
    """Find and load what --resume names. Writes nothing.

    Args:
        resume: None: a new run; "auto": the newest good checkpoint in output_dir, a new run where there is none
            at all; else a path.
        reset_optimizer: needs a checkpoint.
        output_dir: where this run will write.

    Raises:
        ValueError: a new run where another run's checkpoints lie (its files would count as the newer ones), a
            checkpoint that cannot be loaded, or nothing good among those that are there.
    """
    _require_folder(output_dir)
    if resume is None:
        if reset_optimizer:
            raise ValueError("--reset_optimizer needs --resume auto or --resume PATH")
        if _checkpoints_in(output_dir):
            raise ValueError(
                f"{output_dir} holds the checkpoints of an earlier run: go on with --resume auto, "
                "or choose another --output_dir"
            )
        return Start()
    if resume != "auto":
        path = Path(resume)
        state, unverified = _read(path)
        later = _later_than(state.get("global_step", 0), path, output_dir)
        return Start(path, state, (unverified,) if unverified else (), tuple(later))
    found, state = _newest_good(output_dir)
    notes = [f"passed over: {problem}" for problem in found.passed_over]
    if found.path is not None:
        return Start(found.path, state, tuple(notes))
    if notes:
        more = f"; and {len(notes) - SHOWN} more" if len(notes) > SHOWN else ""
        problems = "; ".join(found.passed_over[:SHOWN])
        raise ValueError(f"There is no good checkpoint in {output_dir}: {problems}{more}")
    if reset_optimizer:
        raise ValueError(f"--reset_optimizer needs a checkpoint, and there is none in {output_dir}")
    return Start(notes=(f"There is no checkpoint in {output_dir} yet: a new run.",))


def identity(start: Start) -> str:
    """Which file that is: two machines may have different ones under one path."""
    if start.path is None:
        return "none"
    with open(start.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{start.path.name} (step {start.global_step}, SHA-256 {digest[:12]})"


def _require_folder(output_dir: Path) -> None:
    """Refuse a name that no folder can have, and a folder in which our files could not be made."""
    try:
        output_dir.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ValueError(
            f"Cannot write to {output_dir}: {error.strerror}; choose another --output_dir."
        ) from error
    for path in (output_dir / CONFIG_FILE, output_dir / METRICS_FILE):
        if path.exists() and not path.is_file():
            raise ValueError(f"Cannot write to {path}: it is no regular file; choose another --output_dir.")


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The state, and a note if the file could not be verified.

    Raises:
        CheckpointError: no such checkpoint, or none that a run can go on from, with any model.
    """
    state, unverified = read_checkpoint(path)
    if not is_finite(state):
        raise CheckpointError(
            f"{path} holds weights, moments or a loss scale that are inf or NaN: go on from an earlier checkpoint"
        )
    if problem := state_problem(state, VOCAB_SIZE):
        raise CheckpointError(f"{path} is not as a run saves it: its {problem}")
    return state, unverified


def _newest_good(output_dir: Path) -> tuple[Found, dict[str, Any]]:
    """The newest good checkpoint, and what it holds."""
    manager, failed = CheckpointManager(output_dir), None
    while (found := manager.latest_valid()).path is not None:
        try:
            return found, _read(found.path)[0]
        except CheckpointError:  # it was good a moment ago: has another process removed or harmed it since?
            if found.path == failed:
                raise
            failed = found.path
    return found, {}


def set_aside(paths: tuple[Path, ...], output_dir: Path) -> Path | None:
    """Move checkpoints and their digests into a new folder superseded-N; newer ones would win over this run's.

    A rename changes two folders, and a power cut may leave the half of it that takes the file away. So each file
    has both names until the new one is on the disk.
    """
    if not paths:
        return None
    number = 1
    while (folder := output_dir / f"superseded-{number}").exists():
        number += 1
    make_folder(folder)
    moved = [each for path in paths for each in (path, digest_path(path)) if each.exists()]
    for each in moved:
        try:
            os.link(each, folder / each.name)
        except OSError:  # a file system without links
            each.rename(folder / each.name)
    fsync_folder(folder)
    for each in moved:
        each.unlink(missing_ok=True)
    fsync_folder(output_dir)
    return folder


def _checkpoints_in(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("epoch_*.pt") if NAME.fullmatch(path.name)]
    return found + [path for path in [folder / BEST] if path.exists()]


def _later_than(global_step: int, path: Path, folder: Path) -> list[Path]:
    """The checkpoints in a folder that a run from this one must not meet again."""
    later = []
    for other in _checkpoints_in(folder):
        if path.exists() and other.samefile(path):
            continue
        match = NAME.fullmatch(other.name)
        step = int(match[2]) if match else examine(other).facts.get("global_step", 0)
        if step > global_step:
            later.append(other)
    return later
