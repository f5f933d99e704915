"""The factor of update t, by which every group's initial learning rate is multiplied: pure functions of t.

    stairs  ▔▔▔╲__   warmup + cosine  ╱▔╲_   one cycle  ╱╲_   warm restarts  ╲╲╲

Because the factor depends on t alone, a run that resumes at update t has the rate of an uninterrupted one.

Symbols: t → update (0, 1, 2, …), W → warmup_steps, T → total_steps, r → min_ratio, γ → gamma, p → progress.
Run the demonstration:  python -m solutions.stage01_optimizers.lesson04_lr_schedules.run
Papers: SGDR (Loshchilov and Hutter, 2017) https://arxiv.org/abs/1608.03983
        Super-Convergence (Smith and Topin, 2018) https://arxiv.org/abs/1708.07120
"""

import math


def step_decay(update: int, step_size: int, gamma: float) -> float:
    """Stairs: every `step_size` updates the factor is multiplied by `gamma`.

    f(t) = γ^⌊t / step_size⌋      step_size = 3, γ = 0.1:  1  1  1  0.1  0.1  0.1  0.01 …
    """
    # TODO 4.1 count the finished stages, and decay once for each
    raise NotImplementedError("task 4.1: count the finished stages, and decay once for each")


def cosine_anneal(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at p = 0 to `end` at p = 1, flat at both ends.

    end + (start − end)·(1 + cos πp) / 2      the angle is in radians
    """
    # TODO 4.2 rise in a line to 1, then fall along half a cosine to the floor
    # Part 1: blend the two ends. The weight of `start` goes from 1 to 0, and that of `end` from 0 to 1.
    raise NotImplementedError("task 4.2: rise in a line to 1, then fall along half a cosine to the floor")


def warmup_cosine(update: int, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Linear warmup over W updates, then half a cosine down to the floor r.

        f(t) = (t + 1) / W                                t < W      the first update already uses 1/W
        f(t) = r + (1 − r)·(1 + cos πp) / 2               W ≤ t < T  with p = (t − W) / (T − W)
        f(t) = r                                          t ≥ T      a run that goes on stays at the floor

    Equals torch's SequentialLR of LinearLR(1/W, 1, W − 1) and CosineAnnealingLR(T − W) up to t = T.
    """
    # TODO 4.2 rise in a line to 1, then fall along half a cosine to the floor
    # Part 2: which of the three pieces is t in? W = 0 and W = T must work too.
    raise NotImplementedError("task 4.2: rise in a line to 1, then fall along half a cosine to the floor")


def one_cycle(
    update: int, total_steps: int, pct_start: float, div_factor: float, final_div_factor: float
) -> float:
    """One cosine up to 1, one cosine down to almost nothing.

    With start = 1 / div_factor, end = start / final_div_factor, and peak = pct_start·T − 1, which may lie
    between two updates:

        t ≤ peak          from start to 1,  p = t / peak      (no such piece where peak ≤ 0)
        peak ≤ t < T      from 1 to end,    p = (t − peak) / (T − 1 − peak)
        t ≥ T             end

    The last update, T − 1, uses `end`. Equals torch's OneCycleLR, which divides by zero where peak is 0.
    """
    peak = pct_start * total_steps - 1
    start = 1 / div_factor
    end = start / final_div_factor
    # TODO 4.3 climb to the peak, come down to the end, stay there
    raise NotImplementedError("task 4.3: climb to the peak, come down to the end, stay there")


def warm_restarts(update: int, T_0: int, T_mult: int, min_ratio: float) -> float:
    """Half a cosine, again and again: cycle i = 0, 1, … lasts T_0·T_mult^i updates and begins at 1.

    f(t) = r + (1 − r)·(1 + cos πp) / 2 with p = (updates since the last restart) / (length of this cycle)
    """
    # TODO 4.4 find the cycle that the update falls into, and the place in it
    # Whole numbers only: a logarithm is a hair wrong just where a cycle begins.
    raise NotImplementedError("task 4.4: find the cycle that the update falls into, and the place in it")
