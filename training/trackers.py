"""TensorBoard and Weights & Biases behind the two methods that logger.py needs, log and close.

Used by logger.py. Both packages are optional and imported when they are asked for. Each tracker takes
`history`, the rows that a resumed run has behind it, and so is after a resume what it would be without the kill;
None begins a new log.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

PROJECT = "trainer-from-scratch"
RUN_FOLDER = re.compile(r"(?:offline-)?run-(\d+_\d+)-(\w+)")

Row = Mapping[str, Any]


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in log_dir.

    A new file cannot change an older one, but it can tell TensorBoard to forget all steps from purge_step on.
    That takes the rows of the last step, too; they are written again.
    """

    def __init__(self, log_dir: Path, history: Sequence[Row] | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # costs half a second: only where it is wanted

        last_step = history[-1]["global_step"] if history else 0
        self._writer = SummaryWriter(str(log_dir), purge_step=last_step)
        for row in history or []:
            if row["global_step"] == last_step:
                self.log(metrics_of(row), last_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed process must not have lost what a checkpoint has counted

    def close(self) -> None:
        self._writer.close()


class WandbRun:
    """A run below log_dir/wandb, offline unless the environment variable WANDB_MODE says otherwise.

    Offline, a resumed run is written anew under its old id, from the rows that are kept: a run's file cannot be
    shortened. The older folders go to wandb/superseded, where `wandb sync` does not look. Online, W&B keeps
    what it has and ignores steps until the run is past them again: they are the same numbers.
    """

    def __init__(self, log_dir: Path, history: Sequence[Row] | None) -> None:
        wandb = require("wandb", "use_wandb")
        folder, mode = log_dir / "wandb", os.environ.get("WANDB_MODE", "offline")
        older = {} if history is None else run_folders(folder)
        run_id = older[max(older)] if older else None
        while any(time.strftime("-%Y%m%d_%H%M%S-") in name for name in older):
            time.sleep(0.05)  # a run's folder is named after the second in which it begins
        self._run = wandb.init(
            project=PROJECT,
            dir=log_dir,
            mode=mode,
            id=run_id,
            resume="allow" if run_id else None,
            settings=wandb.Settings(console="off", silent=True),  # the progress bar has the terminal
        )
        if mode in ("offline", "dryrun"):  # two names of one thing
            for row in history or []:
                self.log(metrics_of(row), row["global_step"])
            for name in [name for name, other_id in older.items() if other_id == run_id]:
                superseded = folder / "superseded" / name
                superseded.parent.mkdir(exist_ok=True)
                os.replace(folder / name, superseded)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def run_folders(folder: Path) -> dict[str, str]:
    """The runs below a wandb folder: folder name → run id; the greatest name that is offline is the newest."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.is_dir() and (match := RUN_FOLDER.fullmatch(path.name)):
            found[path.name] = match[2]
    return found


def metrics_of(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "global_step"}


def require(package: str, option: str) -> Any:
    """The package, or an ImportError of one sentence."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{option} needs a package: pip install {package}") from error
