"""Lesson 05: the training loop of a language model.  Tasks 5.3, 5.4, 5.6, 5.7.

Holds:    TrainerFromScratch: one update, one epoch, validation, the whole run
Run it:   python -m solutions.stage02_pretrain.lesson05_training_loop.run
Test it:  pytest testcases/basic_test.py

Symbols:  B batch size · T tokens in a row · V vocabulary size
          N number of labels in a batch that are not −100 · g gradient

Paper: Radford, Narasimhan, Salimans, Sutskever, "Improving Language Understanding by Generative
Pre-Training" (2018): a decoder trained on the next token, AdamW, warmup and cosine.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .evaluation import evaluation_mode, preserve_rng
from .losses import TokenAverage, count_tokens, token_loss

Batch = dict[str, Tensor]


class TrainerFromScratch:
    """Trains a language model: forward → loss → backward → step → schedule → zero_grad, epoch after epoch.

    Args:
        model: `model(input_ids) -> logits`, (B, T) int64 → (B, T, V). It is moved to `device`.
        optimizer: any optimizer with torch's interface, built on this model's parameters.
        train_loader: an iterable of batches {"input_ids": (B, T) int64, "labels": (B, T) int64}; a label of
            −100 is no target. Each epoch iterates it once, a short last batch included.
        val_loader: the same for validation, or None.
        device: where to compute.
        max_epochs: how many epochs the whole run has, ≥ 1. `train()` goes on from `epoch` to here.
        scheduler: a learning-rate scheduler, stepped once per update (so no ReduceLROnPlateau), or None.
        log_interval: a row of history every so many updates, ≥ 1.
        on_log: called with each row as it is added to the history (to print it, to draw it), or None.

    Attributes:
        epoch: epochs finished.
        global_step: updates made since the beginning.
        lr: the learning rate that the latest update used (of the first group); NaN before the first.
        history: the rows so far, in the order of `global_step`. Plain numbers that `json.dumps` accepts:
            {"global_step", "epoch", "train_loss", "lr", "tokens"} every `log_interval` updates, and
            {"global_step", "epoch", "epoch_loss", "val_loss", "val_perplexity"} after each epoch, the last
            two only with a `val_loader`. Rows number the epochs from 1.

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
    ) -> None:
        if max_epochs < 1:
            raise ValueError(f"max_epochs must be >= 1, got {max_epochs}")
        if log_interval < 1:
            raise ValueError(f"log_interval must be >= 1, got {log_interval}")
        self.device = torch.device(device)
        self.optimizer = optimizer
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.max_epochs = max_epochs
        self.scheduler = scheduler
        self.log_interval = log_interval
        self.on_log = on_log
        self.epoch = 0
        self.global_step = 0
        self.lr = math.nan
        self.history: list[dict] = []
        # TODO 5.3 make one update
        # self.model is the model, on the device. Then see that every tensor in the optimizer still is one of
        # its parameters, the very object: some moves replace them, and then training moves nothing.
        # Otherwise a ValueError with the word "optimizer"
        raise NotImplementedError("task 5.3: make one update")

    def train_step(self, batch: Batch) -> tuple[Tensor, int]:
        """One update from one batch.

        Mathematics: g = ∇ (loss_sum / N), then the optimizer's rule. N counts the labels that are not −100.

        A batch without any target (N = 0) changes nothing: no parameter, no state of the optimizer, not the
        schedule, not `global_step`, not `lr`. No floating-point value is read back from the device.

        Args:
            batch: {"input_ids": (B, T), "labels": (B, T)}, on any device.

        Returns:
            (loss_sum, N): the summed loss before the update, a tensor without dimensions and without a graph,
            on the device; and the token count.
        """
        # TODO 5.3 make one update
        # forward: N from the labels as they come (N = 0: return a 0 on the device and a 0), the batch to the
        # device, logits, loss = loss_sum / N
        raise NotImplementedError("task 5.3: make one update")

        # TODO 5.3 make one update
        # update: the gradient of this batch alone, self.lr, the optimizer, the scheduler if there is one,
        # self.global_step. A parameter that this batch does not use has no gradient (None), not a 0
        raise NotImplementedError("task 5.3: make one update")

    def train_epoch(self) -> dict[str, float]:
        """One pass over `train_loader`, logging on the way.

        Mode: a model in eval mode is put into train mode. A model in train mode is left alone, so that a
        submodule that somebody froze with `.eval()` stays frozen.

        Rows, written by `add_step_row(window)`: one after each update that brings `global_step` to a multiple
        of `log_interval`, and one at the end of the epoch if updates were made since the last row. The window
        averages what came since the row before, so each token of the epoch is in exactly one row.
        Losses are read from the device for a row, not for a step.

        Returns:
            {"loss": nats a token over the whole epoch, "tokens": how many}.

        Raises:
            ValueError: where the epoch had no token to learn from (an empty loader).
        """
        # TODO 5.4 go through one epoch, and log the true numbers
        raise NotImplementedError("task 5.4: go through one epoch, and log the true numbers")

    def validate(self) -> dict[str, float]:
        """Loss and perplexity on `val_loader`. Training cannot tell afterwards that it took place.

        Mathematics: loss = Σ loss_sum / Σ N over the whole validation set; perplexity = exp(loss).
        A loss above about 709 has no finite exponential, and its perplexity is inf. NaN stays NaN.

        Returns:
            {"loss": nats a token, "perplexity": exp(loss)}, Python floats.

        Raises:
            ValueError: without a `val_loader`, or where it gave no token.
        """
        if self.val_loader is None:
            raise ValueError("validate() needs a val_loader, and this trainer was built without one")
        average = TokenAverage("val_loader")
        with evaluation_mode(self.model), preserve_rng(self.device):
            for batch in self.val_loader:
                # TODO 5.6 measure the validation loss and the perplexity
                # the batch to the device; its loss_sum and N into `average`
                raise NotImplementedError("task 5.6: measure the validation loss and the perplexity")
        # TODO 5.6 measure the validation loss and the perplexity
        raise NotImplementedError("task 5.6: measure the validation loss and the perplexity")

    def train(self) -> list[dict]:
        """Train until `max_epochs` epochs are finished; validate after each if there is a `val_loader`.

        It goes on where the last call ended. Raise `max_epochs` and call it again: epochs, updates and
        history continue, and the result is that of one longer call.

        Each finished epoch raises `epoch`, and then `add_epoch_row(epoch_loss, val_metrics)` writes its row,
        with what `train_epoch` and `validate` returned (`val_metrics=None` without a `val_loader`).

        Returns:
            `history`.
        """
        # TODO 5.7 run the epochs, and go on where the last call ended
        raise NotImplementedError("task 5.7: run the epochs, and go on where the last call ended")

    def add_step_row(self, window: TokenAverage) -> None:
        """Log the updates since the last row. Reads one number from the device."""
        self._add_row(
            {
                "global_step": self.global_step,
                "epoch": self.epoch + 1,  # the running one
                "train_loss": window.mean(),
                "lr": self.lr,
                "tokens": window.num_tokens,
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
