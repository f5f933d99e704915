r"""Direct preference optimization: of two answers to a prompt, make the chosen one more likely than it was before.

Used by dpo.py: ``objective = Preference(reference, beta=0.1)``, over batches {"input_ids", "labels"}, (B, 2, T).

Symbols: x prompt, y_w chosen answer, y_l rejected answer, π policy (what is trained), π_ref reference (what it was).
Paper: Rafailov et al. 2023, "Direct Preference Optimization", https://arxiv.org/abs/2305.18290.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import IGNORE_INDEX
from training.objective import Forward
from training.sampler import Batch


def sequence_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    r"""$\log \pi(y \mid x) = \sum_t \log \mathrm{softmax}(z_{bt})_{y_{bt}}$ of each row, over its targets.

    A sum and no mean: the probability of a text is a product over its tokens.

    Args:
        logits: z, (B, T, V), any floating dtype; the sum is computed in float32.
        labels: y, (B, T) int64, already shifted; -100 is no target and adds exactly 0.

    Returns:
        (B,) float32, in nats, <= 0.
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -losses.view(labels.shape).sum(dim=-1)


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    r"""The loss of each pair, and its margin.

    $m = \beta \left( \log\frac{\pi(y_w)}{\pi_{ref}(y_w)} - \log\frac{\pi(y_l)}{\pi_{ref}(y_l)} \right)$, and the
    loss is $-\log \sigma(m)$: ln 2 where the policy is the reference, finite for every finite margin.

    Args:
        policy, reference: log π and log π_ref of the chosen and of the rejected answers, (B, 2).
        beta: > 0; rewards a nat.

    Returns:
        (losses with the graph, margins without one), (B,) each. The margin is the chosen answer's implicit
        reward minus the rejected one's.
    """
    rewards = beta * (policy - reference)  # (B, 2)
    margins = rewards[:, 0] - rewards[:, 1]
    return -F.logsigmoid(margins), margins.detach()


class Preference:
    """The objective of DPO, over batches {"input_ids", "labels"} of (B, 2, T): chosen at 0, rejected at 1.

    What is counted are pairs. A pair without a target (a row that was filled in) counts nothing and adds 0.

    Args:
        reference: input_ids (N, T) -> logits (N, T, V), in the run's precision, without a graph or dropout.
        beta: > 0; a small one lets the policy go far from the reference.

    The reference computes on the very batches of the policy: as long as the weights are the same, so is every
    bit of the log-probabilities, and the loss is exactly ln 2.
    """

    def __init__(self, reference: Forward, beta: float) -> None:
        if not beta > 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self.reference = reference
        self.beta = beta

    def count(self, batch: Batch) -> int:
        return int(is_pair(batch["labels"]).sum())

    def sums(self, forward: Forward, batch: Batch) -> dict[str, Tensor]:
        """Over the pairs: "loss", "margin", and "accuracy", where a margin > 0 counts 1 and one of 0 counts ½."""
        input_ids, labels = batch["input_ids"].flatten(0, 1), batch["labels"].flatten(0, 1)  # (2B, T)
        policy = sequence_logprobs(forward(input_ids), labels).view(-1, 2)
        with torch.no_grad():
            reference = sequence_logprobs(self.reference(input_ids), labels).view(-1, 2)
        losses, margins = dpo_loss(policy, reference, self.beta)
        real = is_pair(batch["labels"])
        return {
            "loss": losses.masked_fill(~real, 0.0).sum(),
            "accuracy": (0.5 * (1 + margins.sign())).masked_fill(~real, 0.0).sum(),
            "margin": margins.masked_fill(~real, 0.0).sum(),
        }

    def metrics(self, means: dict[str, float]) -> dict[str, float]:
        """{"loss": nats a pair, "accuracy": share of pairs whose margin is > 0, "margin": mean reward margin}."""
        return means


def is_pair(labels: Tensor) -> Tensor:
    """(B, 2, T) -> (B,) bool: which rows have a target, and so are pairs."""
    return (labels != IGNORE_INDEX).flatten(1).any(dim=1)
