"""Where a command begins: at nothing, or at a checkpoint, which `--resume auto` or a path names.

Used by pretrain.py: ``start = find_start(resume, reset_optimizer, output_dir)``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint import BEST, NAME, CheckpointManager, examine, load_checkpoint
from training.durable import digest_path


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
        state = load_checkpoint(path)
        later = _later_than(state.get("global_step", 0), path, output_dir)
        return Start(path, state, superseded=tuple(later))
    found = CheckpointManager(output_dir).latest_valid()
    notes = [f"passed over: {problem}" for problem in found.passed_over]
    if found.path is not None:
        return Start(found.path, load_checkpoint(found.path), tuple(notes))
    if notes:
        raise ValueError(f"There is no good checkpoint in {output_dir}: {'; '.join(found.passed_over)}")
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


def set_aside(paths: tuple[Path, ...], output_dir: Path) -> Path | None:
    """Move checkpoints and their digests into a new folder superseded-N; newer ones would win over this run's."""
    if not paths:
        return None
    number = 1
    while (folder := output_dir / f"superseded-{number}").exists():
        number += 1
    folder.mkdir()
    for path in paths:
        for each in (path, digest_path(path)):
            if each.exists():
                each.rename(folder / each.name)
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
