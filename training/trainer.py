"""The training loop: forward → backward over a window of micro-batches, clip, update, schedule; validate.

Run: ``Trainer(model, optimizer, train_loader, val_loader, max_epochs=3, grad_accum_steps=4).train()``, or
``python -m training pretrain``.

A *micro-batch* is what the loader gives; a *window* is grad_accum_steps of them (the last of an epoch may be
shorter) and makes one *update*; global_step counts updates.

Paper: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks",
https://arxiv.org/abs/1211.5063 (clipping by the global norm).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.evaluation import eval_mode, preserved_rng
from training.losses import count_tokens, token_loss

MAX_SKIPS_IN_A_ROW = 50  # one bad batch passes; after so many the weights themselves must be broken

Batch = dict[str, Tensor]
Row = dict[str, Any]


class Trainer:
    r"""Trains a language model on batches {"input_ids": (B, T), "labels": (B, T)}, int64, -100 = no target.

    The loss of an update is $\sum_{\text{window}} -\ln p(\text{label}) / N$ with N the targets of the *whole*
    window. So an update from K micro-batches is the update from their concatenation, also when their token
    counts differ, and also for a shorter last window; a mean of K means is neither.

    An update whose gradient norm is inf or NaN is left out (clipping would spread the NaN to every weight),
    and the scheduler waits with it; a window without a target is left out too. Both leave global_step alone.

    Args:
        model: ``model(input_ids) -> logits`` (B, T, V); moved to device.
        optimizer: on this model's parameters.
        train_loader: iterated once an epoch.
        val_loader: for validate(), or None.
        scheduler: stepped once per update, or None.
        device: None means where the model is.
        max_epochs: epochs of the whole run, >= 1.
        grad_accum_steps: micro-batches in a window, >= 1.
        max_grad_norm: global norm above which the gradient is scaled down to it, > 0; None: no clipping.
        log_interval: updates between two training rows, >= 1.
        eval_interval: updates between two validations, >= 1; None: after each epoch. One also ends the run.
        max_steps: stop after so many updates, >= 1; None: max_epochs alone decides.
        on_log: called with each row when it is added to history.

    Attributes:
        global_step, epoch, total_tokens: updates made, epochs finished, targets seen; train() goes on from
            there.
        skipped_steps: updates left out because their gradient was not finite.
        history: rows of plain numbers. Training: "global_step", "epoch", "train_loss", "lr", "grad_norm",
            "tokens", "tokens_per_second", "skipped_steps"; validation: "global_step", "epoch", "val_loss",
            "val_perplexity".

    Raises:
        ValueError: a number out of range, an empty loader, or an optimizer that holds other parameters.
        FloatingPointError: from train(), after MAX_SKIPS_IN_A_ROW updates left out in a row.
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
        log_interval: int = 10,
        eval_interval: int | None = None,
        max_steps: int | None = None,
        on_log: Callable[[Row], None] | None = None,
    ) -> None:
        _require_positive(
            max_epochs=max_epochs,
            grad_accum_steps=grad_accum_steps,
            max_grad_norm=max_grad_norm,
            log_interval=log_interval,
            eval_interval=eval_interval,
            max_steps=max_steps,
        )
        _require_batches(train_loader=train_loader, val_loader=val_loader)
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.params = owned_parameters(optimizer, self.model)
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.scheduler = scheduler
        self.max_epochs = max_epochs
        self.grad_accum_steps = grad_accum_steps
        self.max_grad_norm = max_grad_norm
        self.log_interval = log_interval
        self.eval_interval = eval_interval
        self.max_steps = max_steps
        self.on_log = on_log
        self.global_step = self.epoch = self.total_tokens = self.skipped_steps = 0
        self.history: list[Row] = []
        self._skips_in_a_row = 0
        self._lr = math.nan
        self._validated_step = -1
        self._reset_interval()

    def train(self) -> list[Row]:
        """Train until max_epochs or max_steps, from where the last call ended. Returns history."""
        if not self.model.training:
            self.model.train()  # else leave it: a submodule that somebody froze in eval mode stays frozen
        self.optimizer.zero_grad(set_to_none=True)  # what others left there is not part of the first update
        self._reset_interval()
        while self.epoch < self.max_epochs and not self._reached_max_steps():
            self._train_epoch()
        self._log_training()
        self._log_validation()
        return self.history

    def _train_epoch(self) -> None:
        tokens_before = self.total_tokens
        for window in windows(self.train_loader, self.grad_accum_steps):
            if self._reached_max_steps():  # asked before a window: after its last one an epoch is finished
                return
            if self.train_step(window):
                self._after_update()
        if self.total_tokens == tokens_before:
            raise ValueError("train_loader has no target: it is empty, or every label is -100")
        self._log_training()
        self.epoch += 1
        if self.eval_interval is None:
            self._log_validation()

    def train_step(self, window: list[Batch]) -> bool:
        """One update from one window of micro-batches. Returns whether the weights were updated."""
        # Targets are counted in host memory, before the forward: no synchronisation with the device.
        num_tokens = sum(count_tokens(micro_batch["labels"]) for micro_batch in window)
        if num_tokens == 0:
            return False
        for micro_batch in window:
            input_ids, labels = self._to_device(micro_batch)
            logits = self.model(input_ids)  # (B, T, V)
            loss_sum = token_loss(logits, labels)
            loss = loss_sum / num_tokens  # this micro-batch's share of the window's mean
            loss.backward()
            self._loss_sum += loss_sum.detach()
        self._num_tokens += num_tokens
        self.total_tokens += num_tokens

        self._grad_norm = self.clip_gradients()  # once an update, not once a micro-batch
        updated = bool(self._grad_norm.isfinite())  # the only value that an update reads back from the device
        if updated:
            self._lr = self.optimizer.param_groups[0]["lr"]  # the rate used; the scheduler moves it
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            self.global_step += 1
            self._skips_in_a_row = 0
        else:
            self._skip()
        self.optimizer.zero_grad(set_to_none=True)
        return updated

    def _skip(self) -> None:
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        self._log_training()  # at once: a run that skips must be seen to skip
        if self._skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise FloatingPointError(
                f"the gradient was inf or NaN in {self._skips_in_a_row} updates in a row, "
                f"after update {self.global_step}: try a lower lr, and look at the data"
            )

    def clip_gradients(self) -> Tensor:
        """Scale the gradients to a global norm of at most max_grad_norm; returns the norm before that."""
        if self.max_grad_norm is not None:
            return clip_grad_norm_(self.params, self.max_grad_norm)
        return get_total_norm([param.grad for param in self.params if param.grad is not None])

    def validate(self) -> dict[str, float]:
        """Loss and perplexity over all of val_loader.

        The loss is Σ −ln p / Σ targets, not a mean of batch means; the perplexity is its exponential. Modes,
        gradients and random generators are afterwards as they were before.

        Returns:
            {"loss": nats a token, "perplexity": exp(loss)}.

        Raises:
            ValueError: without a val_loader, or without a target in it.
        """
        if self.val_loader is None:
            raise ValueError("validate() needs a val_loader")
        loss_sum, num_tokens = torch.zeros((), device=self.device), 0
        with torch.no_grad(), eval_mode(self.model), preserved_rng(self.device, self.val_loader):
            for batch in self.val_loader:
                num_tokens += count_tokens(batch["labels"])
                input_ids, labels = self._to_device(batch)
                loss_sum += token_loss(self.model(input_ids), labels)
        if num_tokens == 0:
            raise ValueError("val_loader has no target: it is empty, or every label is -100")
        loss = loss_sum.item() / num_tokens
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else loss * math.inf}

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        input_ids = batch["input_ids"].to(self.device, non_blocking=True)
        return input_ids, batch["labels"].to(self.device, non_blocking=True)

    def _reached_max_steps(self) -> bool:
        return self.max_steps is not None and self.global_step >= self.max_steps

    def _after_update(self) -> None:
        if self.global_step % self.log_interval == 0:
            self._log_training()
        if self.eval_interval is not None and self.global_step % self.eval_interval == 0:
            self._log_validation()

    def _reset_interval(self) -> None:
        self._loss_sum, self._num_tokens = torch.zeros((), device=self.device), 0
        self._started = time.perf_counter()

    def _log_training(self) -> None:
        """One row over the updates since the last: the only place where training reads back its loss."""
        if self._num_tokens == 0:
            return
        train_loss = (
            self._loss_sum.item() / self._num_tokens
        )  # waits for the device, so the clock is read after
        self._log(
            train_loss=train_loss,
            lr=self._lr,
            grad_norm=self._grad_norm.item(),
            tokens=self._num_tokens,
            tokens_per_second=self._num_tokens / (time.perf_counter() - self._started),
            skipped_steps=self.skipped_steps,
        )
        self._reset_interval()

    def _log_validation(self) -> None:
        if self.val_loader is None or self._validated_step == self.global_step:
            return
        started = time.perf_counter()
        metrics = self.validate()
        self._validated_step = self.global_step
        self._log(val_loss=metrics["loss"], val_perplexity=metrics["perplexity"])
        self._started += time.perf_counter() - started  # the throughput is that of training

    def _log(self, **metrics: float) -> None:
        row: Row = {"global_step": self.global_step, "epoch": self.epoch, **metrics}
        self.history.append(row)
        if self.on_log is not None:
            self.on_log(row)


def windows(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of size micro-batches in turn; the last one holds what is left."""
    micro_batches = iter(loader)
    while window := list(islice(micro_batches, size)):
        yield window


def owned_parameters(optimizer: Optimizer, model: nn.Module) -> list[Tensor]:
    """What the optimizer updates. If it was built before a parameter was replaced, it would train a ghost."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    own = {id(param) for param in model.parameters()}
    strangers = sum(id(param) not in own for param in params)
    if strangers:
        raise ValueError(
            f"the optimizer holds {strangers} tensors that are no parameters of the model: "
            "build it after the model"
        )
    return params


def _require_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")


def _require_batches(**loaders: Iterable[Batch] | None) -> None:
    for name, loader in loaders.items():
        try:
            empty = loader is not None and len(loader) == 0  # type: ignore[arg-type]
        except TypeError:  # an iterable without a length: train() and validate() will see
            continue
        if empty:
            raise ValueError(f"{name} is empty: it has no batch")
