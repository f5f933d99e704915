"""The savers that are tried, one way each of saving a state under a name: ours, the lessons' solutions, and peers.

Importing it imports torch.distributed.checkpoint, too; nothing here is saved or loaded yet.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from course import lazy_dynamo
from course.implementation import Implementation
from course.registry import find_lesson
from testcases.training.checkpoint_faults import make_state
from training.checkpoint import load_checkpoint, save_checkpoint

lazy_dynamo.install()
import torch.distributed.checkpoint as dcp  # noqa: E402 (it would load the compiler, which nobody needs)


@dataclass(frozen=True)
class Saver:
    """save(state, path) puts make_state() on the disk; load(path) gives it back, or raises whatever it likes.

    tidies: after an error it leaves no digest of a file that was never written.
    """

    name: str
    save: Callable[[dict, Path], object]
    load: Callable[[Path], dict]
    tidies: bool = True


def lesson(number: str, module: str = "checkpoint") -> ModuleType:
    """A module of a lesson's solution."""
    return getattr(Implementation("solutions").lesson(find_lesson(number)), module)


def _replace(state: dict, path: Path) -> None:
    """What careful scripts do: a temporary file, and a rename."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _save_dcp(state: dict, path: Path) -> None:
    with _quiet():
        dcp.save(state, checkpoint_id=path, no_dist=True)


def _load_dcp(path: Path) -> dict:
    """DCP loads into a state that is there already; NaN shows what it did not touch."""
    with _quiet():
        size = dcp.FileSystemReader(path).read_metadata().state_dict_metadata["model_state_dict.b"].size[0]
        state = make_state(math.nan, size)
        dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns of a single process, and that it overwrites: both are meant. What it raises is no Exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except dcp.api.CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise RuntimeError(f"DCP: {type(reason).__name__}: {reason}") from error


OURS = Saver("training/", save_checkpoint, load_checkpoint)
PEERS = (
    Saver("torch.save(path)", lambda state, path: torch.save(state, path), torch.load),
    Saver("temporary file + replace", _replace, torch.load),
    Saver("DCP, same folder", _save_dcp, _load_dcp),
)


def lessons() -> list[Saver]:
    """The solutions of lessons 08 and 09."""
    eight, nine = lesson("08"), lesson("09")
    return [
        Saver("lesson 08", eight.save_checkpoint, eight.load_checkpoint),
        Saver("lesson 09", nine.save, nine.load, tidies=False),
    ]
