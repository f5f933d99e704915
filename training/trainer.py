"""The training loop: forward → scale → backward over a window, unscale → clip → step → schedule; validate; save.

Run: ``Trainer(model, optimizer, train_loader, max_epochs=3).train()``, or ``python -m training pretrain``.

A *micro-batch* is what the loader gives; a *window* is grad_accum_steps of them (the last of an epoch may be
shorter) and makes one *update*; global_step counts updates.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.amp import Precision
from training.checkpoint import CheckpointManager, load_checkpoint
from training.checks import owned_parameters, require_batches, require_positive
from training.distributed import Ranks
from training.evaluation import evaluate, preserved_rng
from training.gradients import clip_gradients, mean_gradient
from training.milestones import Milestones
from training.objective import NextToken, Objective, to_device
from training.run_log import Progress, Row, RunLog
from training.sampler import Batch, DataCursor
from training.sampler import windows as windows
from training.signals import StopRequested, StopSignals
from training.state import capture, restore, seed_additional_rank

log = logging.getLogger(__name__)


class Trainer:
    r"""Trains a language model on batches {"input_ids": (B, T), "labels": (B, T)}, int64, -100 = no target.

    The loss of an update is $\sum_{\text{window}} -\ln p(\text{label}) / N$ with N the targets of the *whole*
    window. So an update from K micro-batches is the update from their concatenation, also when their token
    counts differ, and also for a shorter last window; a mean of K means is neither.

    An update whose gradient norm is inf or NaN is left out (clipping would spread the NaN to every weight), and
    so is a window without a target. The scheduler waits with it, and global_step stays.

    Several ranks share each micro-batch out, and make the update that one process would make. All call what is
    called here, at the same time; rank 0 alone writes.

    Args:
        model: ``model(input_ids) -> logits`` (B, T, V); moved to device.
        optimizer: on this model's parameters.
        train_loader: iterated once an epoch; see sampler.DataCursor for how a resumed run finds its place.
        val_loader: for validate(), or None.
        scheduler: stepped once per update, or None.
        device: None means where the model is.
        max_epochs: epochs of the whole run, >= 1.
        grad_accum_steps: micro-batches in a window, >= 1.
        max_grad_norm: global norm above which the gradient is scaled down to it, > 0; None: no clipping.
        use_amp: forwards in amp_dtype, "bf16" or "fp16" (which needs a loss scale); weights stay as they are.
        log_interval: updates between two training rows, >= 1.
        save_dir: where checkpoints go, or None for none. Besides those of save_interval, one is saved after the
            best validation so far, at the end, and on SIGTERM and SIGINT.
        save_interval, eval_interval: updates between two checkpoints, two validations, >= 1; None: after each
            epoch. A validation also ends the run.
        max_steps: stop after so many updates, >= 1; None: max_epochs alone decides.
        patience: stop after so many validations in a row that are not the best, >= 1; None: never.
        max_skips: updates left out in a row after which the weights must be broken, >= 1.
        keep_last, async_save: see CheckpointManager. config: plain values, saved for the record.
        objective: what a batch teaches, see objective.py; None: the next token.
        ranks: the processes that train, see distributed.py; None: this one alone.
        on_log: called with each row when it is added to history.

    Attributes:
        progress: the counters, see Progress; `epoch` and `global_step` are two. train() goes on from there.
        history: rows of plain numbers. Training: "global_step", "epoch", "train_loss", "lr", "grad_norm",
            "grad_mean" (in the rows of log_interval), "tokens", "tokens_per_second", "skipped_steps", with
            fp16 "loss_scale"; validation: "global_step", "epoch", "val_loss", "val_perplexity".
        stopped_by: the name of the signal that ended the last train(), or None.

    Raises:
        ValueError: a number out of range, an empty loader, or an optimizer that holds other parameters.
        FloatingPointError: from train(), after max_skips updates left out in a row.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train_loader: Iterable[Batch],
        val_loader: Iterable[Batch] | None = None,
        scheduler: LRScheduler | None = None,
        device: torch.device | str | None = None,
        max_epochs: int = 1,
        grad_accum_steps: int = 1,
        max_grad_norm: float | None = None,
        use_amp: bool = False,
        log_interval: int = 10,
        save_dir: str | os.PathLike[str] | None = None,
        save_interval: int | None = None,
        eval_interval: int | None = None,
        max_steps: int | None = None,
        amp_dtype: str = "bf16",
        patience: int | None = None,
        max_skips: int = 50,
        keep_last: int = 3,
        async_save: bool = True,
        config: dict[str, Any] | None = None,
        objective: Objective | None = None,
        ranks: Ranks | None = None,
        on_log: Callable[[Row], None] | None = None,
    ) -> None:
        require_positive(max_epochs=max_epochs, grad_accum_steps=grad_accum_steps, log_interval=log_interval)
        require_positive(max_grad_norm=max_grad_norm, eval_interval=eval_interval, max_steps=max_steps)
        require_positive(save_interval=save_interval, patience=patience, max_skips=max_skips)
        require_batches(train_loader=train_loader, val_loader=val_loader)
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.model = model.to(self.device)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.params = owned_parameters(optimizer, self.model)
        self.train_loader, self.val_loader = train_loader, val_loader
        self.max_epochs, self.max_steps = max_epochs, max_steps
        self.grad_accum_steps, self.max_grad_norm = grad_accum_steps, max_grad_norm
        precision = Precision(self.device, use_amp, amp_dtype)
        self.autocast, self.scaler = precision.autocast, precision.scaler
        self.log_interval, self.config = log_interval, config or {}
        self.objective = NextToken() if objective is None else objective
        self.ranks = Ranks() if ranks is None else ranks
        self.data = DataCursor(train_loader, self.ranks)
        self.save_dir = save_dir
        self.checkpoints: CheckpointManager | None = None
        if save_dir is not None and self.ranks.is_main:
            self.checkpoints = CheckpointManager(save_dir, keep_last, async_save)
        self.signals = StopSignals(self.ranks)
        self.progress = Progress()
        self.milestones = Milestones(self, eval_interval, save_interval, patience, max_skips)
        self.run_log = RunLog(self.progress, self.device, on_log, self.ranks)
        self.history = self.run_log.history
        self.window: list[Batch] = []  # the micro-batches of the update under way
        self.stopped_by: str | None = None
        seed_additional_rank(self)

    def train(self) -> list[Row]:
        """Train until the run is over, or a signal comes, from where the last call ended. Returns history."""
        if not self.model.training:
            self.model.train()  # else leave it: a submodule that somebody froze in eval mode stays frozen
        if self.progress.micro_step == 0:
            self.optimizer.zero_grad(set_to_none=True)  # what others left is not part of the first update
        self.run_log.restart_clock()
        self.stopped_by = None
        with self.signals:
            try:
                self.milestones.catch_up()  # what is still to be done where a resumed run was left
                while self.epoch < self.max_epochs and not self.milestones.is_over():
                    self._train_epoch()
                self._log_training()
                self.milestones.at_end()
            except StopRequested as stop:
                self.stopped_by = str(stop)
                if self.save_dir is not None:
                    self.save_checkpoint()
            finally:
                if self.checkpoints is not None:
                    self.checkpoints.wait()
        self.ranks.sum(0)  # no rank returns before the last file is there
        return self.history

    def _train_epoch(self) -> None:
        stream = windows(self.data.iterate(self.epoch), self.grad_accum_steps)
        while self._open_window(stream):
            if self.train_step(self.window):
                if self.global_step % self.log_interval == 0:
                    self._log_training()
                self.milestones.after_update()
        if self.milestones.is_over() and not self._is_exhausted(stream):
            return
        if self.progress.epoch_tokens == 0:
            raise ValueError("train_loader has no target: it is empty, or every label is -100")
        self._log_training()
        self.progress.epoch, self.progress.epoch_tokens = self.epoch + 1, 0
        self.data.finish_epoch()
        self.milestones.after_epoch()

    def _open_window(self, stream: Iterator[list[Batch]]) -> bool:
        """Take the next window, unless a resumed one is open. False at the end of the epoch, or of the run."""
        if not self.window and not self.milestones.is_over():
            self.signals.leave_together()
            self.window = next(stream, [])
            self.data.advance(len(self.window))
        return bool(self.window)

    def _is_exhausted(self, stream: Iterator[list[Batch]]) -> bool:
        """Whether the run ends with its epoch. To see that a window is read, without a trace."""
        with preserved_rng(self.device, self.train_loader):
            return next(stream, None) is None

    def train_step(self, window: list[Batch]) -> bool:
        """One update from one window of micro-batches. Returns whether the weights were updated."""
        # Targets are counted in host memory, before the forward: no synchronisation with the device.
        [num_tokens] = self.ranks.sum(sum(self.objective.count(micro_batch) for micro_batch in window))
        if num_tokens == 0:
            self.window = []
            return False
        for micro_batch in window[self.progress.micro_step :]:  # a resumed window goes on where it was left
            self.signals.leave_if_asked()
            with self.ranks.micro_step(last=self.progress.micro_step == len(window) - 1):
                loss_sum = self.objective.sums(self.forward, to_device(micro_batch, self.device))["loss"]
                loss = loss_sum / num_tokens  # this micro-batch's share of the window's mean, over all ranks
                self.scaler.scale(loss).backward()
            self.run_log.add_loss(loss_sum)
            self.progress.micro_step += 1

        self.scaler.unscale_(self.optimizer)  # max_grad_norm is in true gradient units
        row_is_due = (self.global_step + 1) % self.log_interval == 0
        self.run_log.grad_mean = mean_gradient(self.params) if row_is_due else None
        grad_norm = self.run_log.grad_norm = clip_gradients(self.params, self.max_grad_norm)
        updated = math.isfinite(grad_norm.item())  # the only value that an update reads back from the device
        if updated:
            self.progress.lr = self.optimizer.param_groups[0]["lr"]  # the rate used; the scheduler moves it
            self.scaler.step(self.optimizer)
            if self.scheduler is not None:
                self.scheduler.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.window = []
        self.progress.close_window(num_tokens, updated)
        if not updated:
            self._log_training()  # at once: a run that skips must be seen to skip
            self.milestones.stop_if_broken()
        return updated

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> logits (B, T, V), in the run's precision."""
        with self.autocast:
            return self.ranks.forward(self.model, input_ids)

    def validate(self) -> dict[str, float]:
        """The objective's metrics over all of val_loader; see evaluation.evaluate. ValueError without one."""
        loader, ask = self.val_loader, self.signals.leave_if_asked
        if loader is None:
            raise ValueError("validate() needs a val_loader")
        return evaluate(self.model, loader, self.device, self.autocast, ask, self.objective, self.ranks)

    def save_checkpoint(self, is_best: bool = False) -> Path | None:
        """Save all that this trainer is as epoch_{epoch}_step_{global_step}.pt; call it between micro-steps.

        is_best: as best_model.pt, too, if no val_loss in this folder was lower. ValueError without a save_dir.
        Collective: None on the ranks that do not write.
        """
        if self.save_dir is None:
            raise ValueError("save_checkpoint() needs a save_dir")
        self.run_log.sync()
        self.milestones.mark_saved()
        state = capture(self)
        if self.checkpoints is None:
            return None
        return self.checkpoints.save(
            state, self.epoch, self.global_step, metric=self.progress.val_loss if is_best else None
        )

    def load_checkpoint(self, path: str | os.PathLike[str], reset_optimizer: bool = False) -> tuple[int, int]:
        """Go on from a file, exactly where it was saved. Returns (epochs finished, updates made).

        See state.restore. CheckpointError: the file is bad, or does not fit this trainer, which stays as it was.
        """
        for note in restore(self, load_checkpoint(path), reset_optimizer):
            log.warning("%s has %s", path, note)
        self.milestones.mark_saved()
        return self.epoch, self.global_step

    def _log_training(self) -> None:
        scale = {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        self.run_log.training_row(**scale)

    @property
    def epoch(self) -> int:
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        return self.progress.global_step
