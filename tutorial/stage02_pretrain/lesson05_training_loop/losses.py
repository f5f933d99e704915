"""Lesson 05: the loss of a batch as a sum, and its average over many batches.  Tasks 5.1, 5.2.

Holds:    token_loss, count_tokens, TokenAverage
Test it:  pytest testcases/basic_test.py -k "loss or tokens or average"

Symbols:  B batch size · T tokens in a row · V vocabulary size
          z logits (B, T, V) · y labels (B, T) · N number of labels that are not −100

Paper: Bengio, Ducharme, Vincent, Jauvin, "A Neural Probabilistic Language Model", JMLR 3 (2003),
https://www.jmlr.org/papers/v3/bengio03a.html (the loss of the next token, and perplexity).
"""

import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # a label with this value is no target: padding, or a prompt


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of a batch, summed over the tokens that count.

    Mathematics, over the positions (b, t) with y[b, t] ≠ −100:
        loss_sum = − Σ log softmax(z[b, t])[y[b, t]]

    It is a sum, not a mean: sums of several batches may be added, means may not.

    Args:
        logits: z, shape (B, T, V), any floating dtype. Computed in float32, also for bf16 logits.
        labels: y, shape (B, T), int64, in [0, V) or −100. The dataset has shifted them already:
            labels[b, t] is the token that follows input_ids[b, t].

    Returns:
        A float32 tensor without dimensions, in nats, on the device of the logits. It is 0 where every
        label is −100. Finite logits give a finite loss, however large they are.

    Differs from torch: it does not. It is `F.cross_entropy` on flattened float32 logits, summed.
    """
    # TODO 5.1 sum the loss over the tokens that count, and count them
    # a position whose label is −100 adds exactly 0, whatever the logits there are
    raise NotImplementedError("task 5.1: sum the loss over the tokens that count, and count them")


def count_tokens(labels: Tensor) -> int:
    """N, the number of labels that are not −100.

    Args:
        labels: shape (B, T), int64. Call it while they are still in host memory: there the answer costs
            nothing, while reading a number back from a GPU waits for all the work queued on it.

    Returns:
        N, a Python int between 0 and B·T.
    """
    # TODO 5.1 sum the loss over the tokens that count, and count them
    raise NotImplementedError("task 5.1: sum the loss over the tokens that count, and count them")


class TokenAverage:
    """The mean loss a token over many batches: Σ loss_sum / Σ num_tokens.

    It is not the mean of the batches' means. There, a batch of two tokens weighs as much as one of ninety.

    Args:
        name: where the batches come from; it is named when there was nothing to average.

    Attributes:
        loss_sum: Σ loss_sum so far, in nats. A tensor on the device, once a tensor was added.
        num_tokens: Σ num_tokens so far.
    """

    def __init__(self, name: str = "loader") -> None:
        self.name = name
        self.loss_sum: Tensor | float = 0.0
        self.num_tokens = 0

    def add(self, loss_sum: Tensor, num_tokens: int) -> None:
        """Add one batch. Queues an addition on the device and reads nothing back.

        Args:
            loss_sum: the batch's summed loss, without dimensions and without a graph. It may be NaN, and
                then the mean is NaN: a broken run must look broken.
            num_tokens: the batch's number of tokens, ≥ 0.
        """
        # TODO 5.2 average over tokens, not over batches
        raise NotImplementedError("task 5.2: average over tokens, not over batches")

    def mean(self) -> float:
        """Σ loss_sum / Σ num_tokens, in nats a token, a Python float. Only here is the device waited for.

        Raises:
            ValueError: where no token was added.
        """
        if self.num_tokens == 0:
            raise ValueError(f"{self.name} gave no token to average: it is empty, or every label is -100")
        # TODO 5.2 average over tokens, not over batches
        raise NotImplementedError("task 5.2: average over tokens, not over batches")
