r"""Learning-rate schedules: warmup, then constant, linear, cosine; or one cycle. One step per update.

Run: ``scheduler = create_scheduler("cosine", optimizer, warmup_steps=100, total_steps=1000)``; after each
``optimizer.step()`` (not after each micro-batch) ``scheduler.step()``.

With W = warmup_steps, N = total_steps, r = min_lr_ratio, update t = 0, 1, … uses lr · f(t):

    f(t) = (t + 1) / W              while t < W: the first update uses lr / W, the W-th the whole lr
    f(t) = r + (1 - r) · shape(p)   then, with p = min(1, (t - W) / (N - W)); from update N on it stays

"onecycle" is torch's OneCycleLR(cycle_momentum=False) for W >= 2: half a cosine from lr / W at t = 0 up to lr
at t = W - 1, and another one down to r · lr at t = N - 1. Past that it stays, where torch's raises.

Papers: Loshchilov and Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983 (cosine);
Smith and Topin 2018, "Super-Convergence", https://arxiv.org/abs/1708.07120 (one cycle).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from training.optimizer import unknown


def half_cosine(progress: float) -> float:
    """From 1 at p = 0 to 0 at p = 1, flat at both ends."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


# What follows the warmup, from 1 to 0; the floor is blended in, not added.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": half_cosine,
}


def create_scheduler(
    scheduler_type: str,
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int,
    min_lr_ratio: float = 0.1,
) -> LRScheduler:
    """The schedule that a name stands for, on top of the learning rate of each group.

    Args:
        scheduler_type: "constant", "linear", "cosine" or "onecycle", in upper or lower case.
        optimizer: its groups' learning rates are the peaks.
        warmup_steps: W, in updates, in [0, total_steps].
        total_steps: N, in updates, >= 1.
        min_lr_ratio: the floor as a share of each group's rate, in [0, 1]; "constant" never comes down to it.

    Raises:
        ValueError: an unknown name (the message has the nearest), or a number out of range.
    """
    name = scheduler_type.lower()
    if name not in SHAPES and name != "onecycle":
        raise ValueError(unknown("scheduler", scheduler_type, [*SHAPES, "onecycle"]))
    if total_steps < 1:
        raise ValueError(f"total_steps must be >= 1, got {total_steps}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must be in [0, total_steps={total_steps}], got {warmup_steps}")
    if not 0.0 <= min_lr_ratio <= 1.0:
        raise ValueError(f"min_lr_ratio must be in [0, 1], got {min_lr_ratio}")

    def warmup_then_shape(update: int) -> float:
        if update < warmup_steps:
            return (update + 1) / warmup_steps
        progress = 1.0 if update >= total_steps else (update - warmup_steps) / (total_steps - warmup_steps)
        return min_lr_ratio + (1.0 - min_lr_ratio) * SHAPES[name](progress)

    def one_cycle(update: int) -> float:
        peak = max(warmup_steps, 1) - 1  # the update that uses the whole rate
        if update < peak:
            return 1.0 - (1.0 - 1.0 / warmup_steps) * half_cosine(update / peak)
        last = total_steps - 1
        progress = 1.0 if update > last else (update - peak) / max(last - peak, 1)
        return min_lr_ratio + (1.0 - min_lr_ratio) * half_cosine(progress)

    # LambdaLR computes every rate from the update's number, and so a resumed one is exact; the functions are
    # not part of its state_dict, which holds plain numbers.
    return LambdaLR(optimizer, one_cycle if name == "onecycle" else warmup_then_shape)
