"""Lesson 08: which checkpoints of a run to keep, and which one to go on from.  Task 8.4.

Holds:    CheckpointManager
Run it:   python -m solutions.stage02_pretrain.lesson08_checkpoint_trainer.run
Test it:  pytest testcases/basic_test.py -k manager

Paper: as for checkpoint.py, Pillai et al., OSDI 2014: what a folder may look like after a crash.
"""

import math
import os
import re
from pathlib import Path

from .checkpoint import (
    CheckpointError,
    digest_path,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)

CHECKPOINT_NAME = re.compile(r"epoch_(\d+)_step_(\d+)\.pt")


class CheckpointManager:
    """The checkpoints of one run in one folder: the last N, the best, and never without a valid one.

    Names are "epoch_{epoch}_step_{step}.pt" and "best_model.pt". *Newer* means: the larger step, as a number,
    and for equal steps the larger epoch. No clock, no order of letters, no file that names the latest.

    Args:
        directory: the folder; made by the first save. One run writes there at a time.
        keep_last: N ≥ 1.

    Attributes:
        best_metric: the smallest metric so far, math.inf before the first. It comes from best_model.pt where
            there is a valid one, so that a restarted run does not overwrite its best by something worse.
        passed_over: the sentences of the broken checkpoints that the last `latest_valid()` met.
    """

    def __init__(self, directory: str | os.PathLike[str] = "checkpoints", keep_last: int = 3) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be >= 1, got {keep_last}")
        self.directory = Path(directory)
        self.keep_last = keep_last
        self.best_path = self.directory / "best_model.pt"
        self.best_metric = math.inf
        self.passed_over: list[str] = []
        if self.best_path.exists():
            # TODO 8.4 keep the last N and the best, and find the newest valid one
            # a best_model.pt that is broken protects nothing: best_metric stays math.inf
            raise NotImplementedError("task 8.4: keep the last N and the best, and find the newest valid one")

    def checkpoints(self) -> list[Path]:
        """The files with the name of a checkpoint, valid or not, oldest first; without best_model.pt."""
        named = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in self.directory.glob("epoch_*.pt")]
        # TODO 8.4 keep the last N and the best, and find the newest valid one
        # match[1] is the epoch and match[2] the step, as text; names that do not match are not ours
        raise NotImplementedError("task 8.4: keep the last N and the best, and find the newest valid one")

    def save(self, state: dict, metric: float | None = None) -> Path:
        """Save a state under its own name, as best_model.pt too if it is the best, and tidy up.

        Args:
            state: has "epoch" and "step". The files get a "best_metric" in addition: the best up to and
                including this one.
            metric: lower is better, such as the validation loss; None if there was no evaluation. NaN is
                never the best.

        Returns:
            The file with the number.
        """
        path = self.directory / f"epoch_{state['epoch']}_step_{state['step']}.pt"
        # TODO 8.4 keep the last N and the best, and find the newest valid one
        raise NotImplementedError("task 8.4: keep the last N and the best, and find the newest valid one")
        self.prune(path)
        return path

    def latest_valid(self) -> Path | None:
        """The newest checkpoint that verifies, or None. `passed_over` says what was newer, and broken."""
        self.passed_over = []
        # TODO 8.4 keep the last N and the best, and find the newest valid one
        raise NotImplementedError("task 8.4: keep the last N and the best, and find the newest valid one")

    def prune(self, just_saved: Path | None = None) -> None:
        """Delete what is neither among the newest N, nor just saved, nor the newest valid one.

        What a killed save left goes, too: temporary files, and the digest of a file that was never written.
        A checkpoint is deleted by `delete_checkpoint`.
        """
        for litter in self.directory.glob(".*.tmp"):
            litter.unlink()
        for digests in [*self.directory.glob("epoch_*.pt.sha256"), digest_path(self.best_path)]:
            if not digests.with_suffix("").exists():
                digests.unlink(missing_ok=True)
        # TODO 8.4 keep the last N and the best, and find the newest valid one
        raise NotImplementedError("task 8.4: keep the last N and the best, and find the newest valid one")


def delete_checkpoint(filepath: Path) -> None:
    """Remove a checkpoint. The digest first: killed in between, this leaves a file that does not verify."""
    digest_path(filepath).unlink(missing_ok=True)
    filepath.unlink(missing_ok=True)
