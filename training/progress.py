"""A progress bar on a terminal, a line for each row anywhere else.

Run: ``with ProgressBar(max_steps, start=global_step) as bar: bar.update(row)``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

FORMATS = {
    "train_loss": ("loss", "{:.3f}"),
    "val_loss": ("val_loss", "{:.3f}"),
    "val_accuracy": ("val_accuracy", "{:.3f}"),
    "val_margin": ("val_margin", "{:.2f}"),
    "lr": ("lr", "{:.2e}"),
    "grad_norm": ("grad_norm", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
}


class ProgressBar:
    """Shows how far a run is and its latest numbers.

    Args:
        total: updates of the whole run.
        start: updates that a resumed run has behind it.
        stream: where to; None: stdout. Redrawing is for terminals: a file or a pipe gets whole lines.
    """

    def __init__(self, total: int, start: int = 0, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = sys.stdout if stream is None else stream
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if self.stream.isatty():
            columns = (
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            console = Console(file=self.stream)
            self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._progress.add_task("", total=total, completed=start)

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a row of the log: "global_step" and what else is in it."""
        step, text = row["global_step"], describe(row)
        if self._progress is None:
            print(f"step {step}/{self.total}  {text}", file=self.stream, flush=True)
        elif "train_loss" in row:
            self._progress.update(self._task, completed=step, description=text)
        else:  # a validation stays in view, above the bar
            self._progress.update(self._task, completed=step)
            self._progress.console.print(f"step {step}  {text}", highlight=False)

    def __enter__(self) -> ProgressBar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def describe(row: Mapping[str, Any]) -> str:
    """The numbers of a row that people look at: "loss 2.413  lr 5.00e-03  grad_norm 0.81  tokens/s 35,120"."""
    parts = [f"{label} {form.format(row[key])}" for key, (label, form) in FORMATS.items() if key in row]
    if row.get("skipped_steps"):
        parts.append(f"skipped {row['skipped_steps']}")
    return "  ".join(parts)
