"""The checkpoints of a run: saved beside the training, the last N and the best kept, the newest good one found.

``manager = CheckpointManager(directory)``; ``manager.save(state, epoch, global_step, metric)``;
``for warning in manager.poll(): …``; ``manager.latest_valid().path``.

checkpoint_file.py has one file (its functions are imported from here as well), durable.py the order of the
writes, matching.py whether a state fits a model.

*Newer* means the larger step as a number, and for equal steps the larger epoch. No clock, no order of letters
(which puts 9900 behind 10000), no file that names the latest: after a crash all three lie.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from training.checkpoint_file import (
    CheckpointError,
    Report,
    examine,
    load_checkpoint,
    report,
    save_checkpoint,
    snapshot,
    verify_checkpoint,
    write_snapshot,
)
from training.durable import digest_path, exclusive, fsync_folder, is_missing
from training.matching import check_fits
from training.untrusted import is_finite

__all__ = [
    "BEST",
    "CheckpointError",
    "CheckpointManager",
    "Found",
    "Report",
    "check_fits",
    "delete_checkpoint",
    "digest_path",
    "examine",
    "find_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
    "snapshot",
    "verify_checkpoint",
]

NAME = re.compile(r"epoch_(\d+)_step_(\d+)\.pt")
BEST = "best_model.pt"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, None if there is none; and a sentence for each newer file that is not good."""

    path: Path | None
    passed_over: list[str] = field(default_factory=list)


class CheckpointManager:
    """Saves, keeps and finds the checkpoints of one run in one folder.

    A checkpoint is *good* when its digest is that of its bytes, it loads safely, and its numbers are finite.
    Kept are the newest keep_last good ones and best_model.pt; so the only good one is never deleted.

    A save that fails does not stop the training: the older files are as they were, nothing half-written stays,
    and the reason is in the log and in the next `poll()` or `wait()`.

    Args:
        directory: the folder; the first save makes it.
        keep_last: good checkpoints to keep, >= 1.
        asynchronous: `save` returns once the state is copied, and a thread writes. The copy stays for the next
            save: one copy of the state in host memory, for as long as the manager lives.

    Attributes:
        best_metric: the smallest so far, math.inf before the first. It comes from best_model.pt where that is
            good, so a run that goes on does not replace its best by something worse.
    """

    def __init__(
        self, directory: str | os.PathLike[str], keep_last: int = 3, asynchronous: bool = True
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be >= 1, got {keep_last}")
        self.directory = Path(directory)
        self.keep_last = keep_last
        self.asynchronous = asynchronous
        self.best_path = self.directory / BEST
        self._reports: dict[Path, tuple[tuple, Report]] = {}
        self._warnings: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._copy: Any = None

    @cached_property
    def best_metric(self) -> float:  # looked up when it is needed: who only searches is told nothing about it
        best = self.examine(self.best_path)
        if best.loadable and not math.isnan(best.facts.get("val_loss", 0.0)):
            return best.facts.get("best_metric", best.facts.get("val_loss", math.inf))
        if os.path.exists(self.best_path):  # it protects nothing
            self._warn(f"{best.problem or self.best_path}: the next validation replaces it")
        return math.inf

    # ---- saving

    def save(
        self, state: Mapping[str, Any], epoch: int, global_step: int, metric: float | None = None
    ) -> Path:
        """Save a state as epoch_{epoch}_step_{global_step}.pt, and as best_model.pt if it is the best.

        Waits for the save before, if that is still being written.

        Args:
            state: see `snapshot`. The file gets `epoch`, `global_step`, and, where the state has none
                of its own, `best_metric`: the smallest up to and including this one.
            epoch, global_step: >= 0; they name the file.
            metric: lower is better, such as the validation loss; None if there was no evaluation. Neither NaN
                nor infinity is ever the best.

        Returns:
            The path under which the state is, or is about to be.

        Raises:
            ValueError: a number below 0, or a value that safe loading would refuse. Nothing is written.
        """
        if min(epoch, global_step) < 0:
            raise ValueError(f"epoch and global_step must be >= 0, got {epoch} and {global_step}")
        self._join()
        is_best = metric is not None and math.isfinite(metric) and metric < self.best_metric
        best = float(metric) if is_best and metric is not None else self.best_metric
        named = {"best_metric": best, **state, "epoch": epoch, "global_step": global_step}
        if is_best:
            named["best_metric"] = best
        self._copy = copy = snapshot(named, into=self._copy)
        path = self.directory / f"epoch_{epoch}_step_{global_step}.pt"
        arguments = (copy, path, best if is_best else None)
        if self.asynchronous:
            # no daemon: a program that ends waits for its last checkpoint
            self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
            self._thread.start()
        else:
            self._write(*arguments)
            self._copy = None
        return path

    def poll(self) -> list[str]:
        """What went wrong since the last call, one sentence each. Does not wait for a save under way."""
        return [self._warnings.popleft() for _ in range(len(self._warnings))]

    def wait(self) -> list[str]:
        """Wait until the last save is on the disk, or has failed; then as `poll`."""
        self._join()
        return self.poll()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: Mapping[str, Any], path: Path, best: float | None) -> None:
        if not is_finite(state):
            self._warn(
                f"{path} holds weights, moments or a loss scale that are inf or NaN: it does not count"
            )
            best = None
        # The best one first: killed in between, a run that goes on meets this evaluation again.
        if best is not None:
            if not self._written(state, self.best_path):  # it may have got its name before the error
                best = self.examine(self.best_path).facts.get("best_metric", math.inf)
            self.best_metric = min(self.best_metric, best)
        if self._written(state, path):
            self._reports[path] = (_signature(path), report(path, state))
            try:
                self.prune(just_saved=path)
            except OSError as error:
                self._warn(f"older checkpoints in {self.directory} were not removed: {_reason(error)}")

    def _written(self, state: Mapping[str, Any], path: Path) -> bool:
        try:
            write_snapshot(state, path)
        except Exception as error:  # whatever it is: the training is worth more than this file
            self._warn(f"{path} was not saved: {_reason(error)}; older checkpoints are as they were")
            return False
        return True

    def _warn(self, sentence: str) -> None:
        log.warning(sentence)
        self._warnings.append(sentence)

    # ---- finding and keeping

    def latest_valid(self) -> Found:
        """The newest good checkpoint; best_model.pt if no other is good."""
        self._join()
        passed_over: list[str] = []
        for path in [*find_checkpoints(self.directory), self.best_path]:
            if path == self.best_path and not os.path.exists(path):
                continue
            problem = self.examine(path).problem
            if problem is None:
                return Found(path, passed_over)
            passed_over.append(problem)
        return Found(None, passed_over)

    def examine(self, path: Path) -> Report:
        """As the function `examine`, once for a file that does not change."""
        signature = _signature(path)
        known = self._reports.get(path)
        if known is None or known[0] != signature:
            known = self._reports[path] = (signature, examine(path))
        return known[1]

    def prune(self, just_saved: Path | None = None, dry_run: bool = False) -> list[Path]:
        """Delete what is older than the newest keep_last good checkpoints. Returns what it deleted.

        Damaged ones do not count; the newest keep_last of them stay, to be looked into. A file without a digest
        is not from here, and is left alone. So are best_model.pt and just_saved.

        Args:
            dry_run: return them and delete nothing.
        """
        if not self.directory.is_dir():
            return []
        with exclusive(self.directory) as held:
            doomed = [path for path in self._superfluous() if path != just_saved]
            if not dry_run:
                for path in doomed:
                    delete_checkpoint(path)
                    self._reports.pop(path, None)
                if held:
                    self._remove_orphans()
        return doomed

    def _superfluous(self) -> list[Path]:
        good = bad = 0
        superfluous = []
        for path in find_checkpoints(self.directory):
            if not os.path.lexists(digest_path(path)):
                continue
            if good < self.keep_last:  # after that, nothing older needs to be read
                if self.examine(path).problem is None:
                    good += 1
                    continue
                bad += 1
            if good == self.keep_last or bad > self.keep_last:
                superfluous.append(path)
        return superfluous

    def _remove_orphans(self) -> None:
        """Digests whose checkpoint is not there, left by a kill in between. Only for who holds the folder."""
        for digests in self.directory.glob("*.pt.sha256"):
            path = digests.with_suffix("")
            if (NAME.fullmatch(path.name) or path.name == BEST) and is_missing(path):
                digests.unlink(missing_ok=True)


def find_checkpoints(directory: Path) -> list[Path]:
    """The files of a folder with the name of a checkpoint, newest first; without best_model.pt."""
    named = [(NAME.fullmatch(path.name), path) for path in directory.glob("epoch_*.pt")]
    ours = [(int(match[2]), int(match[1]), path) for match, path in named if match]
    return [path for _, _, path in sorted(ours, reverse=True)]


def delete_checkpoint(path: Path) -> None:
    """Remove a checkpoint, the file first, on the disk, too: a kill or a power cut in between leaves a digest of
    nothing, and no file that looks as if another program had saved it."""
    path.unlink(missing_ok=True)
    fsync_folder(path.parent)
    digest_path(path).unlink(missing_ok=True)


def _signature(path: Path) -> tuple:
    """Changes whenever the file or its digest does, but for changes that the system does not know of."""
    parts: list[int] = []
    for each in (path, digest_path(path)):
        try:
            stat = each.stat()
        except OSError:
            parts.append(-1)
        else:
            parts += [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return tuple(parts)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror} ({error.filename})"
    return f"{type(error).__name__}: {error}"
