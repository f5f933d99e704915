"""Lesson 06: the training loop with gradient accumulation and clipping.  Tasks 6.6, 6.7.

Holds:    TrainerFromScratch: the trainer of lesson 05; an update now comes from a window of micro-batches
Run it:   python -m solutions.stage02_pretrain.lesson06_accumulation_clipping.run
Test it:  pytest testcases/basic_test.py -k "update or epoch or logged"

Symbols:  B batch size · T tokens in a row · V vocabulary size · K accumulation_steps
          S loss_sum of a micro-batch · N number of its labels that are not −100 · g gradient

Paper: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
https://arxiv.org/abs/1211.5063 (clipping by the norm).
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.evaluation import eval_mode, preserved_rng
from training.losses import count_tokens, token_loss

from .gradients import Batch, accumulate, clip_grad_norm_, windows


class TokenAverage:
    """The mean loss a token: Σ loss_sum / Σ num_tokens, as in lesson 05.

    Args:
        name: where the batches come from; it is named when there was nothing to average.
    """

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
    """Trains a language model: window → accumulate → clip → step → schedule → zero_grad, epoch after epoch.

    Args:
        model: `model(input_ids) -> logits`, (B, T) int64 → (B, T, V). It is moved to `device`.
        optimizer: any optimizer with torch's interface, built on this model's parameters.
        train_loader: an iterable of micro-batches {"input_ids": (B, T) int64, "labels": (B, T) int64}; a
            label of −100 is no target. Each epoch iterates it once, a short last window included.
        val_loader: the same for validation, or None.
        device: where to compute.
        max_epochs: how many epochs the whole run has, ≥ 1. `train()` goes on from `epoch` to here.
        scheduler: a learning-rate scheduler, stepped once per update (so no ReduceLROnPlateau), or None.
        log_interval: a row of history every so many updates, ≥ 1.
        on_log: called with each row as it is added to the history (to print it, to draw it), or None.
        accumulation_steps: K, micro-batches in a window, ≥ 1.
        max_grad_norm: the largest norm that the gradient of an update may have, > 0; None does not clip.

    Attributes:
        epoch: epochs finished.
        global_step: updates made since the beginning. Not micro-batches.
        skipped_steps: windows whose gradient was not finite, so that no update was made.
        lr: the learning rate that the latest update used (of the first group); NaN before the first.
        grad_norm: the norm of the latest window's gradient before clipping, also of a skipped one; NaN before
            the first. A Python float.
        history: the rows so far, plain numbers:
            {"global_step", "epoch", "train_loss", "lr", "grad_norm", "tokens", "skipped_steps"} every
            `log_interval` updates, and {"global_step", "epoch", "epoch_loss", "val_loss", "val_perplexity"}
            after each epoch, the last two only with a `val_loader`. Rows number the epochs from 1.

    Raises:
        ValueError: for numbers out of range, and where the optimizer holds a tensor that is not a parameter
            of the model.
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
    ) -> None:
        if max_epochs < 1:
            raise ValueError(f"max_epochs must be >= 1, got {max_epochs}")
        if log_interval < 1:
            raise ValueError(f"log_interval must be >= 1, got {log_interval}")
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be >= 1, got {accumulation_steps}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0, or None for no clipping, got {max_grad_norm}")
        self.device = torch.device(device)
        self.model = model.to(self.device)
        mine = {id(param) for param in self.model.parameters()}
        strangers = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in mine]
        if strangers:
            raise ValueError(
                f"the optimizer holds {len(strangers)} tensors that are not parameters of the model: "
                f"build it after the model is complete and on {self.device}"
            )
        self.optimizer = optimizer
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
        """One update from one window of micro-batches.

        Mathematics: g = ∇ (Σ S / Σ N) over the window, g ← clip(g), then the optimizer's rule.

        The norm is that of all the parameters which the optimizer holds, in all of its groups, and of no
        others. It is measured also where nothing is clipped. It is the one floating-point value that an
        update reads back from the device: the host must know whether to go on.

        Where the norm is inf or NaN, there is no update: no parameter, no state of the optimizer, not the
        schedule, not `global_step`, not `lr` changes. `skipped_steps` counts it, and its gradients are
        dropped. Where the window has no target (Σ N = 0), nothing at all changes.

        Args:
            window: a list of {"input_ids": (B, T), "labels": (B, T)}, on any device. However long it is, it
                makes one update.

        Returns:
            (Σ S, Σ N): the summed loss before the update, a tensor without dimensions and without a graph,
            on the device; and the token count. Also for a skipped update.
        """
        # TODO 6.6 make one update from a window
        # accumulate, clip (or only measure), then step, schedule and count, or skip. No gradient of this
        # window may reach the next one
        raise NotImplementedError("task 6.6: make one update from a window")

    def train_epoch(self) -> dict[str, float]:
        """One pass over `train_loader`, window by window, logging on the way.

        Mode: as in lesson 05, a model in eval mode is put into train mode; a frozen submodule stays frozen.

        Rows, written by `add_step_row(interval)`: one after each update that brings `global_step` to a
        multiple of `log_interval`, and one at the end of the epoch if windows with targets came since the
        last row. The interval averages what came since the row before, skipped windows included: each token
        of the epoch is in exactly one row, and a loss of NaN is seen. A skipped window writes no row of its
        own.

        Returns:
            {"loss": nats a token over the whole epoch, "tokens": how many}.

        Raises:
            ValueError: where the epoch had no token to learn from (an empty loader).
        """
        if not self.model.training:
            self.model.train()
        interval = TokenAverage("train_loader")  # since the last row
        epoch = TokenAverage("train_loader")
        # TODO 6.7 go through one epoch by windows, and log each token once
        raise NotImplementedError("task 6.7: go through one epoch by windows, and log each token once")
        return {"loss": epoch.mean(), "tokens": epoch.num_tokens}

    def validate(self) -> dict[str, float]:
        """Loss and perplexity on `val_loader`. Training cannot tell afterwards that it took place.

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
        """Train until `max_epochs` epochs are finished, from where the last call ended; validate after each.

        Returns:
            `history`.
        """
        while self.epoch < self.max_epochs:
            epoch_loss = self.train_epoch()["loss"]
            self.epoch += 1
            val_metrics = self.validate() if self.val_loader is not None else None
            self.add_epoch_row(epoch_loss, val_metrics)
        return self.history

    def add_step_row(self, interval: TokenAverage) -> None:
        """Log the updates since the last row. Reads one number from the device."""
        self._add_row(
            {
                "global_step": self.global_step,
                "epoch": self.epoch + 1,  # the running one
                "train_loss": interval.mean(),
                "lr": self.lr,
                "grad_norm": self.grad_norm,
                "tokens": interval.num_tokens,
                "skipped_steps": self.skipped_steps,
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
