"""Lesson 10: one training loop, three trainers.  Tasks 10.5, 10.6, 10.7.

Holds:    BaseTrainer (the loop), PretrainTrainer, SFTTrainer, DPOTrainer (what a micro-batch costs)
Run it:   python -m solutions.stage02_pretrain.lesson10_trainer_system.run
Test it:  pytest testcases/basic_test.py

Symbols:  B batch size · T tokens in a row · V vocabulary size · K gradient_accumulation_steps
          N what a window's loss was summed over: target tokens, or pairs · g gradient

Papers: Ouyang et al. 2022, https://arxiv.org/abs/2203.02155; Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290; Pascanu, Mikolov, Bengio 2013, https://arxiv.org/abs/1211.5063 (clipping).
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from training.checks import owned_parameters
from training.evaluation import eval_mode, preserved_rng
from training.losses import count_tokens, token_loss

from .losses import Totals, dpo_loss, sequence_logprobs, sum_preferences, to_device

Batch = dict  # of tensors (B, T), or of such dicts


class BaseTrainer:
    """The loop that all stages share. A subclass says what one micro-batch costs: `compute_loss`.

    A *window* is K micro-batches, the last of an epoch may be shorter, and makes one *update*:
        g = Σ_window ∇ loss_sum / N          with N the count of the whole window
    So an update from K micro-batches is the update from one large batch, whatever counts they have.

    Args:
        model: `model(input_ids) -> logits`, (B, T) int64 → (B, T, V), a plain tensor. A model that returns a
            dict or an object needs a wrapper that takes the logits out.
        optimizer: on this model's parameters.
        lr_scheduler: stepped once per update, after it; or None.
        max_grad_norm: a gradient with a larger global norm is scaled down to it, > 0; None: no clipping.
        gradient_accumulation_steps: K ≥ 1.

    Attributes:
        device: where the model is; batches are moved there.
        window: Totals of the micro-batches since the last update.
        global_step: updates made.  epoch: epochs finished.
        history: a row for each update, plain numbers that `json.dumps` accepts: "global_step", "epoch" (from
            1), "lr" (the one that the update used, of the first group), "grad_norm" (before clipping), "count"
            (N), and the mean over N of each sum of `compute_loss`: "loss", …

    Raises:
        ValueError: for numbers out of range, and where the optimizer holds tensors that are not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        max_grad_norm: float | None = 1.0,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0 or None, got {max_grad_norm}")
        if gradient_accumulation_steps < 1:
            raise ValueError(f"gradient_accumulation_steps must be >= 1, got {gradient_accumulation_steps}")
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.max_grad_norm = max_grad_norm
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.params = owned_parameters(optimizer, model)
        self.device = next(model.parameters()).device
        self.window = Totals()
        self.global_step = 0
        self.epoch = 0
        self.history: list[dict] = []

    def compute_loss(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """What one micro-batch costs. Each stage has its own.

        Returns:
            (sums, count): {"loss": the SUM of the losses, with its graph, …other sums to look at}, scalars on
            the device; and how many were summed, a Python int, which may be 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what a micro-batch costs: compute_loss")

    def enter_training_mode(self) -> None:
        """Called before each forward pass of the training. A submodule that somebody froze stays frozen."""
        if not self.model.training:
            self.model.train()

    def training_step(self, batch: Batch) -> dict[str, float]:
        """One micro-batch: forward and backward. It adds to the gradients and to `window`; no weight moves.

        A micro-batch with count 0 adds nothing to the gradients, not even a NaN.

        Returns:
            The means of this micro-batch, plain numbers: {"loss", …, "count"}; NaN where the count is 0.
        """
        self.enter_training_mode()
        # TODO 10.5 accumulate sums, and make one update of them
        # this micro-batch into the gradients, and into self.window
        raise NotImplementedError("task 10.5: accumulate sums, and make one update of them")
        micro_batch = Totals()
        micro_batch.add(sums, count)
        return micro_batch.means()

    def update(self) -> None:
        """One update from the window: divide by N → clip → step → schedule → clear. Adds a row to `history`.

        A window with N = 0 changes nothing: no weight, no state of the optimizer, not the schedule, not
        `global_step`, no row. In either case the window and the gradients are empty afterwards.
        """
        # TODO 10.5 accumulate sums, and make one update of them
        # the row goes through self.add_row(lr, grad_norm) before the window is emptied
        raise NotImplementedError("task 10.5: accumulate sums, and make one update of them")

    def add_row(self, lr: float, grad_norm: float) -> None:
        """Log the update that was just made and counted, from the window that it was made of."""
        row = {"global_step": self.global_step, "epoch": self.epoch + 1, "lr": lr, "grad_norm": grad_norm}
        self.history.append(row | self.window.means())

    def train(self, dataloader: Iterable[Batch], num_epochs: int) -> list[dict]:
        """`num_epochs` more epochs: an update after every K micro-batches, and one for the rest of an epoch.

        It begins with an empty window and without gradients: what others left there is not part of the first
        update. No window reaches from one epoch into the next. Two calls equal one longer call.

        Args: dataloader is iterated once an epoch; num_epochs ≥ 1.  Returns: `history`.

        Raises:
            ValueError: for num_epochs < 1, and after an epoch that made no update (an empty loader).
        """
        if num_epochs < 1:
            raise ValueError(f"num_epochs must be >= 1, got {num_epochs}")
        # TODO 10.6 run the epochs window by window, and evaluate on the way
        raise NotImplementedError("task 10.6: run the epochs window by window, and evaluate on the way")

    def evaluate(self, dataloader: Iterable[Batch]) -> dict[str, float]:
        """The means of `compute_loss` over a whole loader. Training cannot tell that it took place.

        Without dropout, without a graph, and afterwards the modes of all submodules and the random generators
        are as they were, also after an exception. Each sum is divided by the count of the whole loader.

        Returns: {"loss", …, "count"}, plain numbers.  Raises: ValueError where there was nothing to average.
        """
        totals = Totals()
        # TODO 10.6 run the epochs window by window, and evaluate on the way
        # what the imports from training.evaluation are for; every batch into `totals`
        raise NotImplementedError("task 10.6: run the epochs window by window, and evaluate on the way")
        if totals.count == 0:
            raise ValueError("dataloader gave nothing to average: it is empty, or every label is -100")
        return totals.means()


class PretrainTrainer(BaseTrainer):
    """Next-token prediction on {"input_ids": (B, T), "labels": (B, T)}; labels are shifted, −100 is no target."""

    def compute_loss(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """({"loss": Σ − log softmax(z)[label], "accuracy": targets that have the largest logit}, N targets)."""
        # TODO 10.5 accumulate sums, and make one update of them
        raise NotImplementedError("task 10.5: accumulate sums, and make one update of them")


class SFTTrainer(PretrainTrainer):
    """Supervised fine-tuning. The loss is that of pretraining; the data make the difference.

    Its rows come from `build_sft_example` and `collate`: the prompt and the filling are masked by −100, the
    answer and its EOS are learned, and the labels are shifted already.
    """


class DPOTrainer(BaseTrainer):
    """Direct preference optimization on {"chosen": {"input_ids", "labels"}, "rejected": {…}}, row b to row b.

    Args:
        ref_model: the model to stay close to; None: a copy of `model` as it is now. It is frozen: no gradient,
            no update, no dropout.
        beta: β > 0, see `dpo_loss`.
        others: as in BaseTrainer.

    Raises:
        ValueError: where `ref_model` shares a parameter with `model`: it would move along.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        max_grad_norm: float | None = 1.0,
        gradient_accumulation_steps: int = 1,
        ref_model: nn.Module | None = None,
        beta: float = 0.1,
    ) -> None:
        super().__init__(model, optimizer, lr_scheduler, max_grad_norm, gradient_accumulation_steps)
        if not beta > 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self.beta = beta
        # TODO 10.7 train by preferences, against a frozen reference
        # self.ref_model; a ValueError with the word "ref_model" where it shares a parameter with the model
        raise NotImplementedError("task 10.7: train by preferences, against a frozen reference")

    def enter_training_mode(self) -> None:
        """Called before each forward pass of the training. Both models then compute without dropout.

        With dropout two passes of the same weights disagree: the first loss would not be ln 2, and every margin
        would be part noise. That holds for dropout as a module and for dropout that asks `self.training`.
        """
        # TODO 10.7 train by preferences, against a frozen reference
        raise NotImplementedError("task 10.7: train by preferences, against a frozen reference")

    def compute_logprobs(self, model: nn.Module, batch: Batch) -> Tensor:
        """log π(y | x) of each row under `model`.  batch: {"input_ids": (B, T), "labels": (B, T)} → (B,)."""
        # TODO 10.7 train by preferences, against a frozen reference
        raise NotImplementedError("task 10.7: train by preferences, against a frozen reference")

    def compute_loss(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """The losses of a micro-batch, summed over its pairs; what else is summed, see `sum_preferences`."""
        batch = to_device(batch, self.device)
        chosen, rejected = batch["chosen"], batch["rejected"]
        # TODO 10.7 train by preferences, against a frozen reference
        # losses, chosen_rewards, rejected_rewards: (B,) each. The reference records no graph
        raise NotImplementedError("task 10.7: train by preferences, against a frozen reference")
        return sum_preferences(losses, chosen_rewards, rejected_rewards), len(losses)
