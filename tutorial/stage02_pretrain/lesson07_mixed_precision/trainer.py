"""Lesson 07: the training loop in mixed precision.  Task 7.7.

Holds:    TrainerFromScratch: the loop of lesson 06, with a loss scale and master weights
Run it:   python -m solutions.stage02_pretrain.lesson07_mixed_precision.run
Test it:  pytest testcases/basic_test.py -k "training or update"

Symbols:  B batch size · T tokens in a row · V vocabulary size
          N number of labels in a window that are not −100 · s loss scale · g gradient

Paper: Micikevicius et al., "Mixed Precision Training", ICLR 2018, https://arxiv.org/abs/1710.03740
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from training.checks import owned_parameters
from training.evaluation import eval_mode, preserved_rng
from training.losses import count_tokens, token_loss
from training.sampler import windows

from .loss_scaler import LossScaler
from .precision import DTYPES, MasterWeights

Batch = dict[str, Tensor]


class TokenAverage:
    """The mean loss a token: Σ loss_sum / Σ num_tokens, as in lesson 05; `name` is for its error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loss_sum: Tensor | float = 0.0
        self.num_tokens = 0

    def add(self, loss_sum: Tensor, num_tokens: int) -> None:
        """Add a batch or a window. Queues an addition on the device and reads nothing back."""
        self.loss_sum = self.loss_sum + loss_sum
        self.num_tokens += num_tokens

    def mean(self) -> float:
        """In nats a token. Only here is the device waited for. ValueError where no token was added."""
        if self.num_tokens == 0:
            raise ValueError(f"{self.name} gave no token to average: it is empty, or every label is -100")
        return float(self.loss_sum) / self.num_tokens


class TrainerFromScratch:
    """Trains a language model in float32, float16 or bfloat16.

    A window is `accumulation_steps` micro-batches (the last of an epoch may be shorter) and makes one update:
    forward → scale → backward → gradients to the masters, for each micro-batch; then
    unscale → clip → step → update of the scale → weights back to the model → schedule → clear.

    An update whose gradients are not finite is left out: no weight, no state of the optimizer, not the
    schedule, not `lr`, not `global_step` moves. The scale does, and `skipped_steps`.

    Args:
        model: `model(input_ids) -> logits`, (B, T) int64 → (B, T, V). float32, moved to `device`; unless
            `precision` is "fp32", `MasterWeights` then changes it in place.
        optimizer: any optimizer with torch's interface, built on this model's parameters. It is made the
            owner of the masters.
        train_loader: an iterable of batches {"input_ids": (B, T) int64, "labels": (B, T) int64}; a label of
            −100 is no target. Each epoch iterates it once.
        val_loader: the same for validation, or None.
        device: where to compute.
        max_epochs: how many epochs the whole run has, ≥ 1. `train()` goes on from `epoch` to here.
        scheduler: a learning-rate scheduler, stepped once per update, or None.
        log_interval: a row of history every so many updates, ≥ 1.
        on_log: called with each row as it is added to the history, or None.
        accumulation_steps: micro-batches in a window, ≥ 1.
        max_grad_norm: the gradient is scaled down to this global norm, > 0; None: no clipping.
        precision: "fp32", "fp16" or "bf16".
        scaler: the loss scaler. None: a `LossScaler()` for "fp16"; one that is disabled otherwise, since
            float32 and bfloat16 reach down to 1e-38.

    Attributes:
        epoch, global_step, skipped_steps: epochs finished, updates made, updates left out.
        masters: the `MasterWeights`; None in "fp32".
        params: the tensors that the optimizer owns: masters, or the model's parameters in "fp32".
        lr: the learning rate that the latest update used (of the first group); NaN before the first.
        grad_norm: the norm of the latest window's gradient, of its true size (without the scale) and before
            clipping, also of a window that was left out; NaN before the first. A Python float.
        history: rows, as in lesson 06: {"global_step", "epoch", "train_loss", "lr", "grad_norm", "tokens",
            "skipped_steps", "scale"} every `log_interval` updates, and {"global_step", "epoch", "epoch_loss",
            "val_loss", "val_perplexity"} after each epoch, the last two only with a `val_loader`.

    Raises:
        ValueError: for numbers out of range, another precision, and an optimizer of other tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_loader: Iterable[Batch],
        val_loader: Iterable[Batch] | None = None,
        device: torch.device | str = "cpu",
        max_epochs: int = 1,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        log_interval: int = 10,
        on_log: Callable[[dict], None] | None = None,
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        precision: str = "fp32",
        scaler: LossScaler | None = None,
    ) -> None:
        counts = {
            "max_epochs": max_epochs,
            "log_interval": log_interval,
            "accumulation_steps": accumulation_steps,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0, got {max_grad_norm}")
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.params = owned_parameters(optimizer, self.model)  # raises where they are others
        self.masters: MasterWeights | None = None
        if precision != "fp32":
            self.masters = MasterWeights(self.model, DTYPES[precision])
            self.masters.attach(optimizer)
            self.params = [param for group in optimizer.param_groups for param in group["params"]]
        self.scaler = scaler if scaler is not None else LossScaler(enabled=precision == "fp16")
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.max_epochs = max_epochs
        self.scheduler = scheduler
        self.log_interval = log_interval
        self.on_log = on_log
        self.accumulation_steps = accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.epoch = self.global_step = self.skipped_steps = 0
        self.lr = self.grad_norm = math.nan
        self.history: list[dict] = []

    def train_step(self, window: list[Batch]) -> tuple[Tensor, int]:
        """One update from one window of micro-batches, or none where a gradient is not finite.

        Mathematics: g = ∇ (Σ loss_sum / N) over the whole window, found as ∇ (s · …) / s; then the
        optimizer's rule on the masters. A window without any target (N = 0) changes nothing, the scale included.

        Args:
            window: micro-batches {"input_ids": (B, T), "labels": (B, T)}, on any device.

        Returns:
            (Σ loss_sum, N): the summed loss before the update, unscaled, float32, without a graph, on the
            device; and the token count of the window.
        """
        num_tokens = sum(count_tokens(micro_batch["labels"]) for micro_batch in window)
        window_loss = torch.zeros((), device=self.device)
        if num_tokens == 0:
            return window_loss, 0
        for micro_batch in window:
            input_ids = micro_batch["input_ids"].to(self.device, non_blocking=True)  # (B, T)
            labels = micro_batch["labels"].to(self.device, non_blocking=True)  # (B, T)
            # TODO 7.7 make an update in mixed precision
            # forward, loss_sum (float32), backward of this micro-batch's share of the scaled mean; the
            # gradients to the masters if there are any; window_loss
            raise NotImplementedError("task 7.7: make an update in mixed precision")

        # TODO 7.7 make an update in mixed precision
        # self.grad_norm from self.clip_gradients(), on gradients of the true size; updated: whether the norm
        # was finite and the optimizer stepped; the scale moves in either case
        raise NotImplementedError("task 7.7: make an update in mixed precision")

        # TODO 7.7 make an update in mixed precision
        # where it took place: the new weights to the model, self.lr (the rate that was used), the scheduler,
        # self.global_step. Where it did not: self.skipped_steps. No gradient is left for the next window
        raise NotImplementedError("task 7.7: make an update in mixed precision")

    def clip_gradients(self) -> float:
        """Scale what the optimizer will see to a norm of at most max_grad_norm; returns the norm before."""
        max_norm = math.inf if self.max_grad_norm is None else self.max_grad_norm
        return float(clip_grad_norm_(self.params, max_norm))

    def train_epoch(self) -> dict[str, float]:
        """One pass over `train_loader`, window by window, logging on the way, as in lesson 06.

        Returns:
            {"loss": nats a token over the whole epoch, "tokens": how many}.

        Raises:
            ValueError: where the epoch had no token to learn from (an empty loader).
        """
        if not self.model.training:
            self.model.train()
        interval = TokenAverage("train_loader")  # since the last row
        epoch = TokenAverage("train_loader")
        for window in windows(self.train_loader, self.accumulation_steps):
            steps_before = self.global_step
            loss_sum, num_tokens = self.train_step(window)
            interval.add(loss_sum, num_tokens)
            epoch.add(loss_sum, num_tokens)
            # without an update, global_step still stands where the last row was written
            if self.global_step > steps_before and self.global_step % self.log_interval == 0:
                self.add_step_row(interval)
                interval = TokenAverage("train_loader")
        if interval.num_tokens > 0:
            self.add_step_row(interval)
        return {"loss": epoch.mean(), "tokens": epoch.num_tokens}

    def validate(self) -> dict[str, float]:
        """Loss and perplexity on `val_loader`, in the precision of the training, and without a trace in it.

        Returns:
            {"loss": nats a token, "perplexity": exp(loss)}, Python floats.

        Raises:
            ValueError: without a `val_loader`, or where it gave no token.
        """
        if self.val_loader is None:
            raise ValueError("validate() needs a val_loader, and this trainer was built without one")
        average = TokenAverage("val_loader")
        with torch.no_grad(), eval_mode(self.model), preserved_rng(self.device, self.val_loader):
            for batch in self.val_loader:
                logits = self.model(batch["input_ids"].to(self.device))  # (B, T, V)
                loss_sum = token_loss(logits, batch["labels"].to(self.device))
                average.add(loss_sum, count_tokens(batch["labels"]))
        loss = average.mean()
        try:
            perplexity = math.exp(loss)
        except OverflowError:  # math.exp raises where torch.exp would say inf
            perplexity = math.inf
        return {"loss": loss, "perplexity": perplexity}

    def train(self) -> list[dict]:
        """Train until `max_epochs` epochs are finished, from where the last call ended. Returns `history`."""
        while self.epoch < self.max_epochs:
            epoch_loss = self.train_epoch()["loss"]
            self.epoch += 1
            val_metrics = self.validate() if self.val_loader is not None else None
            self.add_epoch_row(epoch_loss, val_metrics)
        return self.history

    def add_step_row(self, interval: TokenAverage) -> None:
        """Log the windows since the last row, those that were left out included."""
        self._add_row(
            {
                "global_step": self.global_step,
                "epoch": self.epoch + 1,  # the running one
                "train_loss": interval.mean(),
                "lr": self.lr,
                "grad_norm": self.grad_norm,
                "tokens": interval.num_tokens,
                "skipped_steps": self.skipped_steps,
                "scale": self.scaler.get_scale(),  # for the next window
            }
        )

    def add_epoch_row(self, epoch_loss: float, val_metrics: dict[str, float] | None) -> None:
        """Log the epoch that was just finished and counted."""
        row = {"global_step": self.global_step, "epoch": self.epoch, "epoch_loss": epoch_loss}
        if val_metrics is not None:
            row |= {"val_loss": val_metrics["loss"], "val_perplexity": val_metrics["perplexity"]}
        self._add_row(row)

    def _add_row(self, row: dict) -> None:
        self.history.append(row)
        if self.on_log is not None:
            self.on_log(row)
