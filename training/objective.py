"""What a batch teaches: how many targets it has, and the sums over them that become the loss and the metrics.

Used by trainer.py and evaluation.py: ``sums = objective.sums(forward, batch)``; loss = Σ sums["loss"] / Σ counts.

An objective gives *sums*, never means: sums of micro-batches, and of processes, may be added. A row whose labels
are all -100 counts nothing and adds exactly 0 to every sum, so rows may be padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from training.losses import count_tokens, token_loss
from training.sampler import Batch

Forward = Callable[[Tensor], Tensor]  # input_ids (B, T) -> logits (B, T, V)


class Objective(Protocol):
    """What Trainer and evaluate() ask of an objective."""

    def count(self, batch: Batch) -> int:
        """How many targets: what the sums are divided by. Called with the batch in host memory."""
        ...

    def sums(self, forward: Forward, batch: Batch) -> dict[str, Tensor]:
        """Float32 scalars: "loss", which is differentiated, and what else is worth a mean.

        Args:
            forward: the model in the run's precision; called once, for all rows together.
            batch: on the model's device.
        """
        ...

    def metrics(self, means: dict[str, float]) -> dict[str, float]:
        """What a validation reports, from Σ sums / Σ counts over all its batches."""
        ...


class NextToken:
    r"""The language model's objective: $-\ln p(\text{label})$, over batches {"input_ids", "labels"}, (B, T)."""

    def count(self, batch: Batch) -> int:
        return count_tokens(batch["labels"])

    def sums(self, forward: Forward, batch: Batch) -> dict[str, Tensor]:
        logits = forward(batch["input_ids"])  # (B, T, V)
        return {"loss": token_loss(logits, batch["labels"])}  # in float32, whatever the forward was in

    def metrics(self, means: dict[str, float]) -> dict[str, float]:
        """{"loss": nats a token, "perplexity": exp(loss), inf where that is too large}."""
        loss = means["loss"]
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else loss * math.inf}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The tensors of a batch on a device; from pinned memory the copy runs beside the computation."""
    return {name: t.to(device, non_blocking=True) for name, t in batch.items() if isinstance(t, Tensor)}
