"""Updates are not micro-batches: how many there will be, and when the schedule moves.

With accumulation an update is made of `accumulation_steps` micro-batches, a window:

    micro-batches   1  2  3  4 | 5  6  7  8 | 9  10      10 of them, accumulation_steps = 4
    updates                  0            1       2      the last window of an epoch may be short: it counts

Run the demonstration:  python -m solutions.stage01_optimizers.lesson04_lr_schedules.run
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def total_updates(num_batches: int, accumulation_steps: int, epochs: int) -> int:
    """How many updates a run makes: the `total_steps` of a schedule. No window reaches into the next epoch.

    Args:
        num_batches: micro-batches in an epoch, ≥ 1.
        accumulation_steps: micro-batches in a window, ≥ 1.
        epochs: ≥ 1.

    Raises:
        ValueError: an argument is out of range.
    """
    arguments = {"num_batches": num_batches, "accumulation_steps": accumulation_steps, "epochs": epochs}
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    # TODO 4.7 count updates, and move the schedule once with each
    # Part 1: windows in an epoch, the short one included, times epochs.
    raise NotImplementedError("task 4.7: count updates, and move the schedule once with each")


def gradients_are_finite(optimizer: Any) -> bool:
    """Whether no gradient that the optimizer would use holds an infinity or a NaN."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return all(bool(torch.isfinite(param.grad).all()) for param in params if param.grad is not None)


def train_epoch(
    micro_batches: Sequence[Any],
    backward: Callable[[Any], None],
    optimizer: Any,
    scheduler: Any,
    accumulation_steps: int,
) -> int:
    """Train on `micro_batches`, one update per window, and return how many updates were made.

    A window is `accumulation_steps` micro-batches; the last one of the epoch may be shorter. At its end:

        gradients finite       the optimizer steps with the rate of update t, then the schedule moves to t + 1
        inf or NaN in them     this window is skipped: neither moves, and the next window is again number t
        in both cases          the gradients are cleared for the next window

    Args:
        backward: adds the gradient of one micro-batch to `param.grad`, scaled for its window (lesson 06).
        optimizer: has `param_groups`, `step()` and `zero_grad()`.
        scheduler: has `step()`.
    """
    updates = 0
    for index, micro_batch in enumerate(micro_batches):
        backward(micro_batch)
        # TODO 4.7 count updates, and move the schedule once with each
        # Part 2: does a window end here? Then update or skip, and clear; `updates` counts those made.
        raise NotImplementedError("task 4.7: count updates, and move the schedule once with each")
    return updates
