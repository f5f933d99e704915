"""The language model's loss, as a sum: sums of several batches may be added, means may not.

Used by trainer.py: ``loss = token_loss(logits, labels) / count_tokens(labels)``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # this label is no target: padding, or a prompt


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross entropy over the targets, $\sum -\ln \mathrm{softmax}(z_{bt})_{y_{bt}}$.

    Args:
        logits: z, (B, T, V), any floating dtype; the sum is computed in float32.
        labels: y, (B, T) int64, already shifted; -100 is no target.

    Returns:
        A float32 scalar in nats; 0 where no label is a target.
    """
    logits = logits.float().flatten(0, 1)  # (B·T, V)
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def count_tokens(labels: Tensor) -> int:
    """How many labels are targets. On a GPU this waits for the device: count before the batch is moved."""
    return int((labels != IGNORE_INDEX).sum())
