"""Schedulers: they write the learning rate of the next update into an optimizer, for every param group.

Group g uses lr = initial_lr(g) · factor(t) at update t = 0, 1, 2, …; an update is one `optimizer.step()`,
however many micro-batches went into it. Any object with `param_groups` will do: the optimizers of lessons 01
and 02, and those of `torch.optim`. The factors come from `factors.py`; `ReduceOnPlateau` looks at a metric.

    scheduler = WarmupCosine(optimizer, warmup_steps=100, total_steps=5000)     # the groups now hold lr(0)
    for batch in batches:
        ...
        optimizer.step()        # update t, with lr(t)
        scheduler.step()        # the groups now hold lr(t + 1)

Run the demonstration:  python -m solutions.stage01_optimizers.lesson04_lr_schedules.run
"""

import math
from abc import ABC, abstractmethod
from typing import Any

from .factors import one_cycle, step_decay, warm_restarts, warmup_cosine


class LRSchedule(ABC):
    """Writes initial_lr · factor into every group of an optimizer. Subclasses say what the factor is.

    After construction the groups hold the rate of update 0. Call `step()` after each `optimizer.step()`.

    Args:
        optimizer: any object with `param_groups`, a list of dicts with the key "lr" (a float). A group's rate
            is remembered as group["initial_lr"]; where that is there already, it is kept: an optimizer back
            from a checkpoint holds in "lr" a rate that was scheduled, and in "initial_lr" where it began.

    Attributes:
        next_update: t, the number of the update that the optimizer makes next, with the rates it now holds.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        # TODO 4.5 write initial_lr · factor into every group
        # Part 1: remember where each group began, then prepare update 0.
        raise NotImplementedError("task 4.5: write initial_lr · factor into every group")

    @abstractmethod
    def factor_at(self, update: int) -> float:
        """f(t): what `initial_lr` is multiplied by at update t."""

    def move_to(self, update: int) -> None:
        """Make `update` the next one: note it in `next_update`, write lr = initial_lr·f(t) to each group."""
        # TODO 4.5 write initial_lr · factor into every group
        # Part 2: ask the optimizer for its groups each time: torch's load_state_dict puts new dicts there.
        raise NotImplementedError("task 4.5: write initial_lr · factor into every group")

    def step(self) -> None:
        """Prepare the next update. Once per update, after it; never per micro-batch."""
        self.move_to(self.next_update + 1)

    def get_last_lr(self) -> list[float]:
        """The rates that the groups hold now, in the order of `param_groups`."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The position and each group's initial rate, as plain numbers; not the schedule's arguments."""
        base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        return {"next_update": self.next_update, "base_lrs": base_lrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the saved schedule stopped: position, initial rates, and the rate of the next update.

        Unlike torch's, it writes the rates. Call it after the optimizer's own load; before it works as well
        where the optimizer saves every key of its groups, as torch's and those of lessons 01 and 02 do.

        Raises:
            ValueError: the optimizer has another number of groups than the saved one.
        """
        base_lrs, groups = state_dict["base_lrs"], self.optimizer.param_groups
        if len(base_lrs) != len(groups):
            raise ValueError(f"the state has {len(base_lrs)} param groups, the optimizer has {len(groups)}")
        # TODO 4.5 write initial_lr · factor into every group
        # Part 3: put back what `state_dict` saved. The next optimizer.step() must already use the right rate.
        raise NotImplementedError("task 4.5: write initial_lr · factor into every group")


class StepDecay(LRSchedule):
    """`step_decay` on an optimizer. The closed form of torch.optim.lr_scheduler.StepLR.

    Args: step_size ≥ 1, in updates. gamma > 0, the factor of one stair.
    """

    def __init__(self, optimizer: Any, step_size: int, gamma: float = 0.1) -> None:
        _require(step_size >= 1, "step_size must be >= 1", step_size)
        _require(gamma > 0, "gamma must be > 0", gamma)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def factor_at(self, update: int) -> float:
        return step_decay(update, self.step_size, self.gamma)


class WarmupCosine(LRSchedule):
    """`warmup_cosine` on an optimizer: the schedule of most language models.

    Args: total_steps ≥ 1, in updates. 0 ≤ warmup_steps ≤ total_steps. 0 ≤ min_ratio ≤ 1, the floor as a part
    of each group's initial rate (torch's eta_min is one rate for all groups).
    """

    def __init__(self, optimizer: Any, warmup_steps: int, total_steps: int, min_ratio: float = 0.0) -> None:
        _require(total_steps >= 1, "total_steps must be >= 1", total_steps)
        _require(0 <= warmup_steps <= total_steps, "warmup_steps must be in [0, total_steps]", warmup_steps)
        _require(0 <= min_ratio <= 1, "min_ratio must be in [0, 1]", min_ratio)
        self.warmup_steps, self.total_steps, self.min_ratio = warmup_steps, total_steps, min_ratio
        super().__init__(optimizer)

    def factor_at(self, update: int) -> float:
        return warmup_cosine(update, self.warmup_steps, self.total_steps, self.min_ratio)


class OneCycle(LRSchedule):
    """`one_cycle` on an optimizer. The group's own rate is the peak (torch's OneCycleLR is given `max_lr`).

    Momentum is left alone, as by OneCycleLR(cycle_momentum=False). Past its end torch raises; this one stays.

    Args: total_steps ≥ 2, in updates. 0 < pct_start < 1. div_factor ≥ 1 and final_div_factor ≥ 1.
    """

    def __init__(
        self,
        optimizer: Any,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        _require(total_steps >= 2, "total_steps must be >= 2", total_steps)
        _require(0 < pct_start < 1, "pct_start must be between 0 and 1", pct_start)
        _require(div_factor >= 1, "div_factor must be >= 1", div_factor)
        _require(final_div_factor >= 1, "final_div_factor must be >= 1", final_div_factor)
        self.arguments = total_steps, pct_start, div_factor, final_div_factor
        super().__init__(optimizer)

    def factor_at(self, update: int) -> float:
        return one_cycle(update, *self.arguments)


class CosineWarmRestarts(LRSchedule):
    """`warm_restarts` on an optimizer, as torch.optim.lr_scheduler.CosineAnnealingWarmRestarts.

    Args: T_0 ≥ 1, the first cycle in updates. T_mult ≥ 1, a whole number. 0 ≤ min_ratio ≤ 1, the floor.
    """

    def __init__(self, optimizer: Any, T_0: int, T_mult: int = 1, min_ratio: float = 0.0) -> None:
        _require(T_0 >= 1, "T_0 must be >= 1", T_0)
        _require(T_mult >= 1 and T_mult == int(T_mult), "T_mult must be a whole number >= 1", T_mult)
        _require(0 <= min_ratio <= 1, "min_ratio must be in [0, 1]", min_ratio)
        self.T_0, self.T_mult, self.min_ratio = T_0, T_mult, min_ratio
        super().__init__(optimizer)

    def factor_at(self, update: int) -> float:
        return warm_restarts(update, self.T_0, self.T_mult, self.min_ratio)


class ReduceOnPlateau(LRSchedule):
    """Multiply the rates by `factor` when a metric stops improving: f = max(factor^n, r) after n reductions.

    It needs no end to plan for, but a metric: call `step(metric)` once per evaluation, not per update.
    A metric is better than `best` where it passes it by more than a margin, downward for mode "min", upward
    for "max": margin = threshold·|best| for threshold_mode "rel", threshold for "abs". Before the first
    evaluation `best` is ±infinity, and any finite metric is better. NaN never is.

    Equals torch's ReduceLROnPlateau(eps=0) but for |best|: torch compares with best·(1 ± threshold), so that
    for a negative metric (a log-likelihood) standing still counts as improving.

    Args: 0 < factor < 1. patience ≥ 0, bad evaluations in a row that are forgiven: one more reduces.
    threshold ≥ 0. cooldown ≥ 0, evaluations after a reduction that never count as bad. 0 ≤ min_ratio ≤ 1.
    """

    STATE = "best", "num_bad", "cooldown_left", "num_reductions"

    def __init__(
        self,
        optimizer: Any,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_ratio: float = 0.0,
    ) -> None:
        _require(mode in ("min", "max"), "mode must be min or max", mode)
        _require(threshold_mode in ("rel", "abs"), "threshold_mode must be rel or abs", threshold_mode)
        _require(0 < factor < 1, "factor must be between 0 and 1", factor)
        _require(min(patience, cooldown) >= 0, "patience and cooldown must be >= 0", (patience, cooldown))
        _require(threshold >= 0, "threshold must be >= 0", threshold)
        _require(0 <= min_ratio <= 1, "min_ratio must be in [0, 1]", min_ratio)
        self.mode, self.factor, self.patience, self.cooldown = mode, factor, patience, cooldown
        self.threshold, self.threshold_mode, self.min_ratio = threshold, threshold_mode, min_ratio
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad = self.cooldown_left = self.num_reductions = 0
        super().__init__(optimizer)

    def factor_at(self, update: int) -> float:
        """The factor after the reductions so far; here the number of the update does not matter."""
        return max(self.factor**self.num_reductions, self.min_ratio)

    def is_better(self, metric: float) -> bool:
        """Whether `metric` passes `best` by more than the margin."""
        # TODO 4.6 reduce when the metric has stopped improving
        # Part 1: inf·0 and inf − inf are NaN: mind `best` before the first evaluation.
        raise NotImplementedError("task 4.6: reduce when the metric has stopped improving")

    def step(self, metric: float) -> None:
        """Take in one evaluation: is it better or bad; are we cooling down; is the patience exceeded?"""
        metric = float(metric)  # a one-element tensor is welcome
        # TODO 4.6 reduce when the metric has stopped improving
        # Part 2: an evaluation during the cooldown uses up one of it and clears the count of bad ones, but it
        # may still be the best. A reduction starts the cooldown and a new count.
        raise NotImplementedError("task 4.6: reduce when the metric has stopped improving")
        self.move_to(self.next_update + 1)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self.STATE:
            setattr(self, name, state_dict[name])
        super().load_state_dict(state_dict)


def _require(condition: bool, rule: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"{rule}, got {value}")
