"""Lesson 08: a trainer that accumulates, clips, logs, and saves all that it is.  Tasks 8.6, 8.7.

Holds:    Trainer
Run it:   python -m solutions.stage02_pretrain.lesson08_checkpoint_trainer.run
Test it:  pytest testcases/basic_test.py -k "window or clipping or trainer or load"

Symbols:  K accumulation_steps · k micro-batches in a window, k ≤ K, and k < K only in the last of an epoch
          L_i loss of micro-batch i (a mean over its own samples) · g gradient of the window

A *micro-batch* is what the loader gives. A *window* of them makes one *update*. global_step counts updates.

Paper: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
https://arxiv.org/abs/1211.5063 (clipping by the norm).
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from training.checks import owned_parameters

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .logger import gradient_mean, memory_metrics
from .manager import CheckpointManager
from .matching import find_mismatches

MAX_SKIPS_IN_A_ROW = 50  # one bad batch passes; after so many the weights themselves must be broken


class Trainer:
    """Trains any model whose call gives its loss: `loss = model(batch)`, a tensor without dimensions.

    Args:
        model: on the device where it computes. `batch` is passed to it as the loader gives it.
        optimizer: any of torch.optim, built on this model's parameters.
        scheduler: stepped once per update (so no ReduceLROnPlateau), or None.
        config: a dict of plain values, which is saved with every checkpoint. Read from it:
            "accumulation_steps": K ≥ 1 (default 1);
            "max_grad_norm": > 0, or None for no clipping (default None);
            "log_interval": updates between two rows of the log, ≥ 1 (default 10);
            "save_interval": updates between two checkpoints, ≥ 1; None (default): none is saved by itself;
            "save_dir", "keep_last": for the CheckpointManager (defaults "checkpoints" and 3).
        scaler: a torch.amp.GradScaler for fp16 training, or None.
        logger: has `log(metrics, step)` and `resume(step)`, such as a TrainerLogger; or None.

    Attributes:
        epoch: epochs finished.
        global_step: updates made.
        micro_step: micro-batches in the window that is open, 0 ≤ micro_step < K.
        skipped_steps: updates left out because their gradient was not finite.
        manager: the CheckpointManager.

    Raises:
        ValueError: a number out of range, or an optimizer that holds other tensors than this model's.
        FloatingPointError: from the training, after MAX_SKIPS_IN_A_ROW updates left out in a row.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        config: dict[str, Any],
        scaler: torch.amp.GradScaler | None = None,
        logger: Any = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)  # disabled, it passes everything through
        self.logger = logger
        self.params = owned_parameters(optimizer, model)
        self.accumulation_steps = _setting(config, "accumulation_steps", 1, int)
        self.max_grad_norm = _setting(config, "max_grad_norm", math.inf, float)
        self.log_interval = _setting(config, "log_interval", 10, int)
        self.save_interval = _setting(config, "save_interval", None, int)
        self.manager = CheckpointManager(config.get("save_dir", "checkpoints"), config.get("keep_last", 3))
        self.epoch = self.global_step = self.skipped_steps = 0
        self._start_afresh()

    def _start_afresh(self) -> None:
        """No window open, nothing to log yet."""
        self.optimizer.zero_grad(set_to_none=True)
        self.micro_step = self._skips_in_a_row = 0
        self.lr = self.grad_mean = self.grad_norm = math.nan
        self.loss_sum: Tensor | float = 0.0  # Σ L_i since the last row of the log
        self.loss_count = 0

    def train_step(self, batch: Any) -> Tensor:
        """One micro-batch: forward, backward, and `update()` if it fills the window.

        Mathematics: adds ∇ L_i / K to the gradients, times the loss scale of `scaler.scale`.

        For the log it adds L_i itself to `loss_sum`, and 1 to `loss_count`. Reads nothing from the device.

        Returns:
            L_i, not divided by anything: a tensor without dimensions and without a graph.
        """
        # TODO 8.6 make updates from windows of micro-batches
        # BEGIN SOLUTION
        loss = self.model(batch)
        self.scaler.scale(loss / self.accumulation_steps).backward()
        loss = loss.detach()
        self.loss_sum = self.loss_sum + loss
        self.loss_count += 1
        self.micro_step += 1
        if self.micro_step == self.accumulation_steps:
            self.update()
        return loss
        # END SOLUTION

    def update(self) -> None:
        """Close the window that is open: unscale → gradient of the mean → clip → step → schedule → clear.

        Mathematics, for k micro-batches:
            g = (1/k) Σ ∇ L_i           for k < K, too: the last samples of an epoch count like all others
            g ← g · min(1, max_grad_norm / ‖g‖)         ‖g‖ over all parameters together; kept in `grad_norm`
        then the optimizer's rule, and one step of the schedule. `lr` is the rate that this update used.

        If ‖g‖ is NaN or infinite the update is left out: weights, moments, schedule and `global_step` stay,
        `skipped_steps` counts. (Clipping would spread the NaN to every weight.) The window is closed all the
        same, its gradients are gone, and the scaler lowers its scale.

        Does nothing if no window is open.
        """
        if self.micro_step == 0:
            return
        # TODO 8.6 make updates from windows of micro-batches
        # the true gradient of the mean: without the loss scale, and right for k < K
        # BEGIN SOLUTION
        self.scaler.unscale_(self.optimizer)
        if self.micro_step < self.accumulation_steps:
            for param in self.params:
                if param.grad is not None:
                    param.grad.mul_(self.accumulation_steps / self.micro_step)
        # END SOLUTION
        if self.logger is not None:
            self.grad_mean = gradient_mean(self.params)  # before clipping, as grad_norm
        # TODO 8.6 make updates from windows of micro-batches
        # clip, decide, step, schedule; the scaler's update(); then the window is closed
        # BEGIN SOLUTION
        self.grad_norm = clip_grad_norm_(self.params, self.max_grad_norm)
        updated = bool(self.grad_norm.isfinite())
        if updated:
            self.lr = self.optimizer.param_groups[0]["lr"]  # before the scheduler moves it
            self.scaler.step(self.optimizer)
            if self.scheduler is not None:
                self.scheduler.step()
            self.global_step += 1
        else:
            self.skipped_steps += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.micro_step = 0
        # END SOLUTION
        self._after_window(updated)

    def train_epoch(self, dataloader: Iterable[Any]) -> float:
        """One pass over the data, in train mode.

        Windows are filled one after the other; what is left at the end makes a last, shorter one. Then the
        epoch counts, and only then `after_epoch()` logs and saves: "epoch 2" in a file means two finished.

        Returns:
            The mean of L_i over the epoch, a Python float. NaN if one of them was NaN.

        Raises:
            ValueError: where `dataloader` gave no micro-batch.
        """
        if not self.model.training:
            self.model.train()
        # TODO 8.6 make updates from windows of micro-batches
        # BEGIN SOLUTION
        loss_sum, count = 0.0, 0
        for batch in dataloader:
            loss_sum = loss_sum + self.train_step(batch)
            count += 1
        self.update()  # the last window, if it is not full
        if count == 0:
            raise ValueError("dataloader gave no micro-batch: it is empty, or an iterator that is used up")
        self.epoch += 1
        self.after_epoch()
        return float(loss_sum) / count
        # END SOLUTION

    def _after_window(self, updated: bool) -> None:
        """What is due after a window: count skips, log, save."""
        self._skips_in_a_row = 0 if updated else self._skips_in_a_row + 1
        if self._skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise FloatingPointError(
                f"the gradient was inf or NaN in {self._skips_in_a_row} updates in a row, "
                f"after update {self.global_step}: try a lower lr, and look at the data"
            )
        if updated and self.global_step % self.log_interval == 0:
            self.log_row()
        if updated and self.save_interval is not None and self.global_step % self.save_interval == 0:
            self.save()

    def after_epoch(self) -> None:
        """Log what is left, and save if checkpoints are wanted."""
        if self.loss_count > 0:
            self.log_row()
        if self.save_interval is not None:
            self.save()

    def log_row(self) -> None:
        """One row: the mean of L_i since the last, and the latest update's numbers. Reads from the device."""
        if self.logger is not None:
            row = {
                "loss": float(self.loss_sum) / self.loss_count,
                "lr": self.lr,
                "grad_norm": self.grad_norm,
                "grad_mean": self.grad_mean,
                "skipped_steps": self.skipped_steps,
                **memory_metrics(self.params[0].device),
            }
            self.logger.log(row, self.global_step)
        self.loss_sum, self.loss_count = 0.0, 0

    def save(self, metric: float | None = None) -> Path:
        """Save through the manager, with the metric (lower is better) of an evaluation if there was one."""
        return self.manager.save(self.state(), metric)

    def save_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Save under a name of your choice. For the errors see checkpoint.save_checkpoint."""
        save_checkpoint(self.state(), filepath)

    def state(self) -> dict[str, Any]:
        """All that this trainer is, but for what lesson 09 adds: RNG, place in the data, open window.

        Returns:
            {"epoch", "step": global_step, "model_state_dict", "optimizer_state_dict", "scheduler_state_dict":
            None without a scheduler, "config", "best_metric": the manager's}; and "scaler_state_dict" where
            the scaler is enabled. The tensors are the live ones: saving copies them.
        """
        # TODO 8.7 put everything back, or nothing
        # BEGIN SOLUTION
        state = {
            "epoch": self.epoch,
            "step": self.global_step,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": None if self.scheduler is None else self.scheduler.state_dict(),
            "config": self.config,
            "best_metric": self.manager.best_metric,
        }
        if self.scaler.is_enabled():
            state["scaler_state_dict"] = self.scaler.state_dict()
        return state
        # END SOLUTION

    def load_checkpoint(self, filepath: str | os.PathLike[str]) -> tuple[int, int]:
        """Go on from a checkpoint: verify, load, compare; then apply all of it, or none.

        A window that was open is closed without an update. The trainer's own config stays; the file's is for
        the record.

        Returns:
            (epoch, step): epochs finished, updates made.

        Raises:
            CheckpointError: the file is not valid, or does not fit this trainer. Nothing was changed then.
        """
        state = load_checkpoint(filepath)
        problems = find_mismatches(state, self.model, self.optimizer, self.scheduler, self.scaler)
        # TODO 8.7 put everything back, or nothing
        # BEGIN SOLUTION
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise CheckpointError(f"{filepath} does not fit this trainer: {problems[0]}{more}")
        self.model.load_state_dict(state["model_state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler_state_dict"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler_state_dict"])
        self.epoch, self.global_step = state["epoch"], state["step"]
        # END SOLUTION
        self._start_afresh()
        if self.logger is not None:
            self.logger.resume(self.global_step)
        return self.epoch, self.global_step


def _setting(config: dict[str, Any], key: str, default: Any, kind: type) -> Any:
    """A positive number from the config; None means the default."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, (int, kind)) or not value > 0:
        raise ValueError(f"{key} must be {'an int' if kind is int else 'a number'} > 0, got {value!r}")
    return value
