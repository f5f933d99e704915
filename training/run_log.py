"""The counters of a run, and the rows of numbers that it leaves: the loss of some updates, or of a validation.

Used by trainer.py and state.py; logger.py writes the rows to files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.distributed import Ranks

Row = dict[str, Any]


@dataclass
class Progress:
    """The counters of a run, all plain numbers.

    epoch, global_step: epochs finished, updates made. micro_step: micro-batches of the open window whose
        gradients wait. schedule_start: the global_step at which the schedule began (0 without a reset).
    total_tokens, epoch_tokens, interval_tokens: targets seen in the run, in the epoch, since the last row.
    skipped_steps, skips_in_a_row: updates left out because their gradient was not finite.
    lr: the rate that the latest update used.
    rows: rows logged. Not only a step: several rows may belong to one.
    train_loss, val_loss, best_metric: of the latest rows, NaN before the first; the lowest val_loss.
    validated_step: the global_step of the latest validation. stale_validations: those since the best one.
    validation_due, save_due: what a run that was stopped in between has still to do.
    """

    epoch: int = 0
    global_step: int = 0
    micro_step: int = 0
    schedule_start: int = 0
    total_tokens: int = 0
    epoch_tokens: int = 0
    interval_tokens: int = 0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    lr: float = math.nan
    rows: int = 0
    train_loss: float = math.nan
    val_loss: float = math.nan
    best_metric: float = math.inf
    validated_step: int = -1
    stale_validations: int = 0
    validation_due: bool = False
    save_due: bool = False

    def close_window(self, num_tokens: int, updated: bool) -> None:
        """Count a window of num_tokens targets, and the update that it made or did not make."""
        self.micro_step = 0
        self.total_tokens += num_tokens
        self.epoch_tokens += num_tokens
        self.interval_tokens += num_tokens
        self.global_step += updated
        self.skipped_steps += not updated
        self.skips_in_a_row = 0 if updated else self.skips_in_a_row + 1

    def load(self, counters: dict[str, Any]) -> None:
        """Take these counters, in place: several objects hold this one."""
        for name, value in counters.items():
            setattr(self, name, value)


class RunLog:
    """Gathers what belongs into the next training row, and makes the rows.

    Args:
        progress: the counters, which it also writes (rows, losses, validations).
        device: where the losses are summed: a row is the only time that they are read back.
        on_log: called with each row, or None.
        ranks: the processes that train; all make their rows at the same updates. None: this one alone.

    Attributes:
        on_sync: called before a checkpoint counts the rows so far, or None: whoever keeps them on a disk makes them
            outlive a power cut.
        history: the rows of this process.
        loss_sum: this process's share of Σ −ln p since the last row. grad_norm: of the latest update, before
            clipping. grad_mean: the mean gradient element of the latest update, None where it was not asked for.
    """

    def __init__(
        self,
        progress: Progress,
        device: torch.device,
        on_log: Callable[[Row], None] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.progress = progress
        self.ranks = Ranks() if ranks is None else ranks
        self.on_log = on_log
        self.on_sync: Callable[[], None] | None = None
        self.history: list[Row] = []
        self.loss_sum = self.grad_norm = torch.zeros((), device=device)
        self.grad_mean: Tensor | None = None
        self.restart_clock()

    def sync(self) -> None:
        if self.on_sync is not None:
            self.on_sync()

    def restart_clock(self) -> None:
        self._started = time.perf_counter()

    def add_loss(self, loss_sum: Tensor) -> None:
        """Of a micro-batch. Queues an addition on the device; out of place, since a save may hold the old sum."""
        self.loss_sum = self.loss_sum + loss_sum.detach()

    def training_row(self, **extra: float) -> None:
        """One row over the updates since the last, if there were any."""
        progress = self.progress
        if progress.interval_tokens == 0:
            return
        loss_sum = sum(self.ranks.gather(self.loss_sum.item()))  # waits for the device, …
        progress.train_loss = loss_sum / progress.interval_tokens
        seconds = time.perf_counter() - self._started  # … so the clock is read after
        mean = {} if self.grad_mean is None else {"grad_mean": self.grad_mean.item()}
        self._add(
            train_loss=progress.train_loss,
            lr=progress.lr,
            grad_norm=self.grad_norm.item(),
            **mean,
            tokens=progress.interval_tokens,
            tokens_per_second=progress.interval_tokens / seconds,
            skipped_steps=progress.skipped_steps,
            **extra,
        )
        self.loss_sum, progress.interval_tokens = torch.zeros_like(self.loss_sum), 0
        self.restart_clock()

    def validation_row(self, metrics: dict[str, float], seconds: float) -> bool:
        """One row. Returns whether the loss is the lowest so far, which NaN and -inf never are."""
        progress = self.progress
        improved = math.isfinite(metrics["loss"]) and metrics["loss"] < progress.best_metric
        progress.best_metric = metrics["loss"] if improved else progress.best_metric
        progress.stale_validations = 0 if improved else progress.stale_validations + 1
        progress.validated_step, progress.val_loss = progress.global_step, metrics["loss"]
        self._add(**{f"val_{name}": value for name, value in metrics.items()})
        self._started += seconds  # the throughput is that of training
        return improved

    def _add(self, **metrics: float) -> None:
        row: Row = {"global_step": self.progress.global_step, "epoch": self.progress.epoch, **metrics}
        self.progress.rows += 1
        self.history.append(row)
        if self.on_log is not None:
            self.on_log(row)
