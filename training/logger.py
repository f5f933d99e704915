"""The log of a run: metrics.jsonl always, TensorBoard and Weights & Biases on request.

Run: ``with TrainerLogger("runs/demo", resume_step=None) as logger: logger.log({"train_loss": 1.25}, step=20)``.

A line of metrics.jsonl is one JSON object, {"global_step": 20, "train_loss": 1.25, "grad_norm": "nan"}. JSON
has no NaN and no infinity: they are the strings "nan", "inf" and "-inf", which read_metrics() turns back.

Columns that are measured, and so differ between two runs with the same numbers, are "tokens_per_second" and all
that begin with "system/"; `comparable` leaves them out.

Format: RFC 8259, https://www.rfc-editor.org/rfc/rfc8259 (section 6: numbers).
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from training.durable import make_folder
from training.trackers import TensorBoard, Tracker, WandbRun, require

METRICS_FILE = "metrics.jsonl"
SYSTEM = "system/"
MEASURED = {"tokens_per_second"}

Row = dict[str, Any]
log = logging.getLogger(__name__)


class TrainerLogger:
    """Writes metrics; goes on where a checkpoint was made as if nothing had happened in between.

    A line is with the operating system when `log` returns: a process that is killed has not lost it. What
    cannot be written (a full disk) is said once, kept, and written as soon as that is possible; TensorBoard
    or W&B in trouble is said once and then left alone. Training goes on in each case.

    Args:
        log_dir: the folder; it is made.
        use_wandb: also log to W&B, below log_dir; offline, unless WANDB_MODE says otherwise.
        use_tensorboard: also write TensorBoard event files into log_dir.
        resume_step: the checkpoint's global_step: later rows are taken out of every log. None: a new log, which
            replaces an older one.
        resume_rows: how many rows the checkpoint had seen. A step may have several rows, and the checkpoint be
            made between two of them: the number decides then.

    Attributes:
        path: metrics.jsonl.
        num_rows: rows logged since the beginning of the run; belongs into a checkpoint, for resume_rows.
        last_step: of the last row, or resume_step; `log` does not go behind it.

    Raises:
        ImportError: the package that is asked for is not installed; one sentence with the command.
        ValueError: log_dir cannot be written, or TensorBoard or W&B cannot start.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "runs",
        use_wandb: bool = False,
        use_tensorboard: bool = False,
        resume_step: int | None = None,
        resume_rows: int | None = None,
    ) -> None:
        for package, wanted in (("tensorboard", use_tensorboard), ("wandb", use_wandb)):
            if wanted:
                require(package, f"use_{package}")  # before anything of an older log is touched
        self.log_dir = Path(log_dir)
        self.path = self.log_dir / METRICS_FILE
        try:
            make_folder(self.log_dir)
            kept, end = ([], 0) if resume_step is None else rows_until(self.path, resume_step, resume_rows)
            self._file = LineFile(self.path, end)
        except OSError as error:
            raise ValueError(f"Cannot write to {self.log_dir}: {error.strerror}.") from error
        self.num_rows = len(kept)
        if resume_rows is not None and self.num_rows < resume_rows:
            log.warning("%s has %d of the %d rows that the run had.", self.path, self.num_rows, resume_rows)
        self.last_step = 0 if resume_step is None else resume_step
        self._trackers: list[Tracker] = []
        history = None if resume_step is None else kept
        for tracker_class, wanted in ((TensorBoard, use_tensorboard), (WandbRun, use_wandb)):
            try:
                if wanted:
                    self._trackers.append(tracker_class(self.log_dir, history))
            except (
                Exception
            ) as error:  # theirs may be of any kind; before the training it is the user's to solve
                self.close()
                text = " ".join(str(error).split())
                raise ValueError(f"{tracker_class.__name__} cannot start: {text}") from error

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append one row: global_step, then the metrics in their order.

        Args:
            metrics: names to numbers, or to tensors with one element; NaN and infinity are numbers.
                "global_step" may be among them, if it is `step`.
            step: updates made so far, >= 0. It may repeat but not go back.

        Raises:
            ValueError: for metrics or a step other than these; nothing has been written then, nowhere.
        """
        if type(step) is not int or step < self.last_step:
            raise ValueError(f"step must be an integer >= {self.last_step}, the last one, got {step!r}")
        values = {name: as_number(name, value) for name, value in metrics.items()}
        if values.pop("global_step", step) != step:
            raise ValueError(f"global_step must be step={step}, got {metrics['global_step']!r}")
        if not values:
            raise ValueError("metrics must have at least one name besides global_step, got none")
        texts = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._file.append(json.dumps({"global_step": step, **texts}) + "\n")
        self.last_step = step
        self.num_rows += 1
        for tracker in list(self._trackers):
            self._attempt(tracker, "log", values, step)

    def sync(self) -> None:
        """Wait until the rows are on the disk. Before a checkpoint: what it counts survives a power cut, too."""
        self._file.sync()

    def close(self) -> None:
        """Close everything; may be called again."""
        self._file.close()
        for tracker in list(self._trackers):
            self._attempt(tracker, "close")
        self._trackers = []

    def _attempt(self, tracker: Tracker, method: str, *arguments: Any) -> None:
        try:
            getattr(tracker, method)(*arguments)
        except Exception as error:  # whatever another package raises, it does not end the training
            self._trackers.remove(tracker)
            log.warning("%s failed and is off from here on: %s", type(tracker).__name__, error)

    def __enter__(self) -> TrainerLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LineFile:
    """A file of lines that grows at its end. An error costs a warning, and no line for as long as it lasts.

    Args:
        path: the file; made if it is missing.
        end: cut it to so many bytes first.

    Raises:
        OSError: from the constructor only.
    """

    def __init__(self, path: Path, end: int) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open until close())
        self._end = end  # of the last whole line
        self._waiting: list[bytes] = []
        try:
            self._file.truncate(end)
        except OSError:
            self._file.close()
            raise

    def append(self, line: str) -> None:
        failed_before = bool(self._waiting)
        self._waiting.append(line.encode())
        try:
            self._write()
        except OSError as error:
            if not failed_before:
                log.warning(
                    "Cannot write to %s: %s. TRAINING GOES ON; its metrics are kept in memory until they can be "
                    "written.",
                    self.path,
                    error.strerror,
                )
        else:
            if failed_before:
                log.warning("%s can be written again; no row is missing.", self.path)

    def _write(self) -> None:
        """All that waits, behind the last whole line; a write that broke off has left a piece there."""
        if os.fstat(self._file.fileno()).st_size != self._end:
            self._file.truncate(self._end)
        text = b"".join(self._waiting)
        written = 0
        while written < len(text):  # a nearly full disk takes a part, and refuses the rest
            written += self._file.write(text[written:]) or 0
        self._end += len(text)
        self._waiting = []

    def sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            log.warning("Cannot sync %s: %s.", self.path, error.strerror)

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            if self._waiting:
                self._write()
        except OSError as error:
            log.warning("%s lacks its last %d rows: %s.", self.path, len(self._waiting), error.strerror)
        finally:
            self._file.close()


def as_number(name: str, value: Any) -> int | float:
    """A metric as a plain int or float, from a number of Python, numpy, or a tensor with one element.

    Raises:
        ValueError: for anything else, with the name.
    """
    if type(value) in (int, float):
        return value
    if not isinstance(value, numbers.Real) and getattr(value, "numel", lambda: 0)() == 1:
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise ValueError(f"metric {name!r} must be one number, got {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def rows_until(path: Path, step: int, max_rows: int | None = None) -> tuple[list[Row], int]:
    """The rows up to a step, and where they end in the file, in bytes.

    A half line at the end is what a killed process leaves, and no row. Any other line that is none ends the
    rows, too, after a copy of the file has been made beside it: somebody may want to look at it.
    """
    rows: list[Row] = []
    end = 0
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        row = _parse(line)
        if row is None:
            if line.endswith(b"\n"):
                copy = path.with_name(path.name + ".damaged")
                shutil.copyfile(path, copy)
                log.warning(
                    "%s is damaged from line %d on: %s is a copy, this log ends there.", path, number, copy
                )
            break
        if row["global_step"] > step or (max_rows is not None and len(rows) >= max_rows):
            break
        rows.append(row)
        end += len(line)
    return rows, end


def _parse(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        if type(row["global_step"]) is not int:
            return None
        return {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_metrics(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a metrics.jsonl, its "nan", "inf" and "-inf" as floats again; a half line at the end is none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no row of such a file.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif line.endswith(b"\n"):
            raise ValueError(f"{path}, line {number} is no line of a log: {line[:60]!r}")
    return rows


def comparable(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows without what was measured: equal for two runs whose numbers are the same."""
    return [
        {name: value for name, value in row.items() if name not in MEASURED and not name.startswith(SYSTEM)}
        for row in rows
    ]
