"""What comes at the end of an update, of an epoch, of the run: a validation, a checkpoint, or the end.

Used by trainer.py: ``milestones.after_update()``.

All is decided from the counters, so several processes, which have the same counters, decide the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.trainer import Trainer


class Milestones:
    """Notes in the trainer's counters what is due, and does it. The other arguments are the Trainer's."""

    def __init__(
        self,
        trainer: Trainer,
        eval_interval: int | None,
        save_interval: int | None,
        patience: int | None,
        max_skips: int,
    ) -> None:
        self.trainer, self.progress = trainer, trainer.progress
        self.eval_interval, self.save_interval = eval_interval, save_interval
        self.patience, self.max_skips = patience, max_skips
        self._saved: tuple[int, ...] = ()

    def is_over(self) -> bool:
        """Whether the run ends here, whatever is left of its epochs."""
        max_steps = self.trainer.max_steps
        stale = self.patience is not None and self.progress.stale_validations >= self.patience
        return stale or (max_steps is not None and self.progress.global_step >= max_steps)

    def after_update(self) -> None:
        step = self.progress.global_step
        self._note(
            validation=self.eval_interval is not None and step % self.eval_interval == 0,
            save=self.save_interval is not None and step % self.save_interval == 0,
        )
        self.catch_up()

    def after_epoch(self) -> None:
        self._note(validation=self.eval_interval is None, save=self.save_interval is None)
        self.catch_up()

    def at_end(self) -> None:
        self._note(validation=True, save=True)
        self.catch_up()

    def _note(self, validation: bool, save: bool) -> None:
        self.progress.validation_due |= validation and self.trainer.val_loader is not None
        self.progress.save_due |= save and self.trainer.save_dir is not None

    def catch_up(self) -> None:
        """Do what is due now, or was due when a signal ended a validation."""
        trainer, progress, improved = self.trainer, self.progress, False
        if progress.validation_due and progress.validated_step != progress.global_step:
            trainer.signals.leave_together()
            started = time.perf_counter()
            metrics = trainer.validate()
            improved = trainer.run_log.validation_row(metrics, time.perf_counter() - started)
        save = progress.save_due and self._saved != self._position()
        progress.validation_due = progress.save_due = False  # before the save: a resumed run has done both
        if save or (improved and trainer.save_dir is not None):
            trainer.save_checkpoint(is_best=improved)

    def mark_saved(self) -> None:
        """There is a file of just this state."""
        self._saved = self._position()

    def _position(self) -> tuple[int, ...]:
        progress = self.progress
        return progress.epoch, progress.global_step, progress.micro_step, progress.rows

    def stop_if_broken(self) -> None:
        """FloatingPointError after max_skips updates left out in a row."""
        skips = self.progress.skips_in_a_row
        if skips >= self.max_skips:
            raise FloatingPointError(
                f"the gradient was inf or NaN in {skips} updates in a row, "
                f"after update {self.progress.global_step}: try a lower lr, and look at the data"
            )
