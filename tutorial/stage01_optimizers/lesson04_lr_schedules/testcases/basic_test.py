"""Basic tests of lesson 04: learning-rate schedules. Run: pytest testcases/basic_test.py"""

import math

import pytest

ROUNDING = "the same formula in another order rounds differently in the last digits"
HALF_ROOT = math.sqrt(0.5)  # cos(π/4)


class PlainOptimizer:
    """All that a schedule may rely on is `param_groups`. Records the rates that each update uses."""

    def __init__(self, *lrs):
        self.param_groups = [{"params": [], "lr": lr} for lr in lrs]
        self.used = []

    def step(self):
        self.used.append([group["lr"] for group in self.param_groups])

    def zero_grad(self):
        """There are no parameters."""


def rates_used(optimizer, scheduler, updates):
    """Make that many updates and return the rates that they used."""
    before = len(optimizer.used)
    for _ in range(updates):
        optimizer.step()
        scheduler.step()
    return optimizer.used[before:]


def compare_steps(expect, name, got, want, source):
    """One comparison for each update."""
    for update, (g, w) in enumerate(zip(got, want, strict=True)):
        expect.close(name, g, w, source=source, atol=1e-12, because=ROUNDING, step=update)


@pytest.mark.task("4.1")
@pytest.mark.parametrize(
    ("step_size", "gamma", "want"),
    [(3, 0.1, [1, 1, 1, 0.1, 0.1, 0.1, 0.01]), (1, 0.5, [1, 0.5, 0.25, 0.125]), (4, 2.0, [1, 1, 1, 1, 2])],
)
def test_step_decay_is_level_within_a_stage(lesson, expect, step_size, gamma, want):
    """The factors of the first updates, for three stairs."""
    got = [lesson.factors.step_decay(t, step_size, gamma) for t in range(len(want))]
    compare_steps(expect, "factor", got, want, "γ^⌊t / step_size⌋")


@pytest.mark.task("4.2")
@pytest.mark.parametrize(
    ("progress", "want"),
    [(0, 1.0), (0.25, 0.6 + 0.4 * HALF_ROOT), (1 / 3, 0.8), (0.5, 0.6), (2 / 3, 0.4), (1, 0.2)],
)
def test_cosine_anneal_passes_the_known_points(lesson, expect, progress, want):
    """From 1 to 0.2, at angles whose cosine is known: 0°, 45°, 60°, 90°, 120°, 180°."""
    got = lesson.factors.cosine_anneal(1.0, 0.2, progress)
    expect.close("value", got, want, source="0.2 + 0.8·(1 + cos πp) / 2", atol=1e-12, because=ROUNDING)


@pytest.mark.task("4.2")
@pytest.mark.parametrize("warmup_steps", [1, 4, 10])
def test_warmup_rises_from_one_over_w_to_one(lesson, expect, warmup_steps):
    """The factors of the W warmup updates of a run of 20."""
    want = [(t + 1) / warmup_steps for t in range(warmup_steps)]
    got = [lesson.factors.warmup_cosine(t, warmup_steps, 20, 0.1) for t in range(warmup_steps)]
    compare_steps(
        expect, "factor", got, want, "(t + 1) / W: the first update is not wasted, the last has the peak"
    )


@pytest.mark.task("4.2")
@pytest.mark.parametrize(("warmup_steps", "min_ratio"), [(0, 0.0), (0, 0.2), (3, 0.0), (3, 0.2)])
def test_cosine_falls_from_the_peak_to_the_floor(lesson, expect, warmup_steps, min_ratio):
    """Four updates of cosine after W = 0 or 3 of warmup, floor r = 0 or 0.2, and the factor after them."""
    weights = [1.0, (1 + HALF_ROOT) / 2, 0.5, (1 - HALF_ROOT) / 2, 0.0]
    for t, weight in enumerate(weights, start=warmup_steps):
        got = lesson.factors.warmup_cosine(t, warmup_steps, warmup_steps + 4, min_ratio)
        want = min_ratio + (1 - min_ratio) * weight
        source = "r + (1 − r)·(1 + cos πp) / 2, p = (t − W) / (T − W)"
        expect.close("factor", got, want, source=source, atol=1e-12, because=ROUNDING, step=t)


@pytest.mark.task("4.2")
@pytest.mark.parametrize(
    ("warmup_steps", "total_steps", "want"),
    [
        (0, 1, [1, 0.25, 0.25]),
        (1, 1, [1, 0.25, 0.25]),
        (3, 3, [1 / 3, 2 / 3, 1, 0.25, 0.25, 0.25, 0.25]),
        (0, 2, [1, 0.625, 0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_warmup_cosine_holds_at_its_boundaries(lesson, expect, warmup_steps, total_steps, want):
    """No warmup, nothing but warmup, one update; and updates after the end. Floor 0.25."""
    got = [lesson.factors.warmup_cosine(t, warmup_steps, total_steps, 0.25) for t in range(len(want))]
    compare_steps(expect, "factor", got, want, "W = 0 starts at 1, W = T ends at 1, beyond T the floor")


@pytest.mark.task("4.3")
def test_one_cycle_starts_peaks_and_ends_where_it_should(lesson, expect):
    """T = 20, pct_start = 0.2: peak at update 3, middle of the way down at 11, end at 0.04 / 100."""
    want = {0: 0.04, 1: 0.28, 2: 0.76, 3: 1.0, 11: 0.5002, 19: 0.0004, 20: 0.0004, 30: 0.0004}
    for t, factor in want.items():
        got = lesson.factors.one_cycle(t, 20, 0.2, 25.0, 100.0)
        source = "up over peak = 0.2·20 − 1 = 3 updates, down over the other 16, then level"
        expect.close("factor", got, factor, source=source, atol=1e-12, because=ROUNDING, step=t)


@pytest.mark.task("4.4")
@pytest.mark.parametrize(
    ("T_mult", "want"),
    [
        (
            1,
            {
                0: 1,
                1: (1 + HALF_ROOT) / 2,
                2: 0.5,
                3: (1 - HALF_ROOT) / 2,
                4: 1,
                6: 0.5,
                8: 1,
                12: 1,
                14: 0.5,
            },
        ),
        (2, {0: 1, 2: 0.5, 4: 1, 6: (1 + HALF_ROOT) / 2, 8: 0.5, 12: 1, 20: 0.5, 28: 1, 44: 0.5, 60: 1}),
        (3, {0: 1, 2: 0.5, 4: 1, 10: 0.5, 16: 1, 34: 0.5, 52: 1}),
    ],
)
def test_restarts_begin_every_cycle_at_one(lesson, expect, T_mult, want):
    """T_0 = 4, floor 0: the beginnings and the middles of the first cycles."""
    source = f"cycles of 4, 4·{T_mult}, 4·{T_mult}², … updates; (1 + cos πp) / 2 in each"
    for t, factor in want.items():
        got = lesson.factors.warm_restarts(t, 4, T_mult, 0.0)
        expect.close("factor", got, factor, source=source, atol=1e-12, because=ROUNDING, step=t)


@pytest.mark.task("4.5")
def test_rate_used_by_the_first_updates_is_that_of_update_zero_one_two(lesson, expect):
    """WarmupCosine, lr = 0.8, W = 4; the optimizer writes down the rate in its own step()."""
    optimizer = PlainOptimizer(0.8)
    scheduler = lesson.scheduler.WarmupCosine(optimizer, warmup_steps=4, total_steps=12)
    expect.close(
        "lr after construction",
        scheduler.get_last_lr(),
        [0.2],
        source="0.8·1/4",
        atol=1e-12,
        because=ROUNDING,
    )
    used = rates_used(optimizer, scheduler, 5)
    compare_steps(
        expect, "lr used", used, [[0.2], [0.4], [0.6], [0.8], [0.8]], "0.8·(t + 1) / 4, then the peak"
    )


@pytest.mark.task("4.5")
def test_every_group_is_scaled_from_its_own_initial_rate(lesson, expect):
    """StepDecay halves every 2 updates; three groups with lr 0.8, 0.04 and 0."""
    optimizer = PlainOptimizer(0.8, 0.04, 0.0)
    scheduler = lesson.scheduler.StepDecay(optimizer, step_size=2, gamma=0.5)
    want = [[0.8 * f, 0.04 * f, 0.0] for f in (1, 1, 0.5, 0.5, 0.25, 0.25, 0.125)]
    compare_steps(
        expect, "lr used", rates_used(optimizer, scheduler, 7), want, "initial_lr of the group · 0.5^⌊t/2⌋"
    )
    expect.equal("next_update", scheduler.next_update, 7, source="seven updates were made: 0 to 6")


@pytest.mark.task("4.5")
def test_load_goes_on_at_the_saved_update(lesson, expect):
    """Saved after 3 updates of [0.8, 0.04]; loaded beside a new optimizer that was given 0.5 and 0.5."""
    optimizer = PlainOptimizer(0.8, 0.04)
    scheduler = lesson.scheduler.StepDecay(optimizer, step_size=2, gamma=0.5)
    rates_used(optimizer, scheduler, 3)
    state = scheduler.state_dict()
    uninterrupted = rates_used(optimizer, scheduler, 4)

    resumed = PlainOptimizer(0.5, 0.5)
    scheduler = lesson.scheduler.StepDecay(resumed, step_size=2, gamma=0.5)
    scheduler.load_state_dict(state)
    for update, (got, want) in enumerate(
        zip(rates_used(resumed, scheduler, 4), uninterrupted, strict=True), start=3
    ):
        expect.equal("lr used", got, want, source="the run that was not interrupted", step=update)


@pytest.mark.task("4.6")
@pytest.mark.parametrize(
    ("mode", "metrics", "want"),
    [
        ("min", [5, 4, 4, 4, 4, 4, 4, 4], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ("min", [5, 6, 6, 4, 6, 6, 3, 9], [1, 1, 1, 1, 1, 1, 1, 1]),
        ("min", [4, 5, 4.5, 5, 4.5, 5, 4.5], [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ("max", [0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.8, 0.9], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        ("max", [9, 8, 7, 6, 5, 4, 3, 2], [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
    ],
    ids=["stands-still", "just-in-time", "wobbles", "max-rises", "max-falls"],
)
def test_plateau_reduces_when_patience_is_exceeded(lesson, expect, mode, metrics, want):
    """lr = 1, factor 0.5, patience 2: the third bad evaluation in a row halves the rate."""
    optimizer = PlainOptimizer(1.0)
    scheduler = lesson.scheduler.ReduceOnPlateau(optimizer, mode=mode, factor=0.5, patience=2, threshold=0.01)
    for step, (metric, lr) in enumerate(zip(metrics, want, strict=True)):
        scheduler.step(metric)
        source = f"metrics {metrics[: step + 1]}, mode {mode}"
        expect.equal("lr after the evaluation", scheduler.get_last_lr(), [lr], source=source, step=step)


@pytest.mark.task("4.6")
@pytest.mark.parametrize(
    ("threshold_mode", "mode", "best", "metric", "better"),
    [
        ("rel", "min", 8.0, 6.5, False),
        ("rel", "min", 8.0, 5.5, True),
        ("abs", "min", 8.0, 7.5, True),
        ("abs", "min", 8.0, 7.9, False),
        ("rel", "max", 8.0, 9.5, False),
        ("rel", "max", 8.0, 10.5, True),
        ("abs", "max", 8.0, 8.5, True),
        ("abs", "max", 8.0, 8.1, False),
        ("abs", "min", 8.0, 7.75, False),
        ("rel", "max", 8.0, 10.0, False),
    ],
)
def test_plateau_asks_for_more_than_the_margin(lesson, expect, threshold_mode, mode, best, metric, better):
    """threshold = 0.25, best = 8: margin 2 relative, 0.25 absolute. A metric just on it is not better."""
    scheduler = lesson.scheduler.ReduceOnPlateau(
        PlainOptimizer(1.0), mode=mode, threshold=0.25, threshold_mode=threshold_mode
    )
    scheduler.step(best)
    margin = 2.0 if threshold_mode == "rel" else 0.25
    source = f"best {best}, mode {mode}, margin {margin}, metric {metric}"
    expect.equal("better", bool(scheduler.is_better(metric)), better, source=source)


@pytest.mark.task("4.7")
@pytest.mark.parametrize(
    ("num_batches", "accumulation_steps", "epochs", "want"),
    [(10, 4, 1, 3), (8, 4, 1, 2), (10, 4, 3, 9), (3, 4, 5, 5), (7, 1, 2, 14), (1, 1, 1, 1)],
)
def test_total_updates_counts_the_short_window(lesson, expect, num_batches, accumulation_steps, epochs, want):
    """Micro-batches in an epoch, micro-batches in a window, epochs."""
    got = lesson.updates.total_updates(num_batches, accumulation_steps, epochs)
    expect.equal("total updates", got, want, source="⌈num_batches / accumulation_steps⌉ · epochs")


@pytest.mark.task("4.7")
@pytest.mark.parametrize("num_batches", [8, 10])
def test_schedule_moves_once_per_update(lesson, expect, num_batches):
    """Windows of 4 micro-batches; StepDecay halves after every update, so that each rate tells its update."""
    optimizer, seen = PlainOptimizer(1.0), []
    scheduler = lesson.scheduler.StepDecay(optimizer, step_size=1, gamma=0.5)
    made = lesson.updates.train_epoch(list(range(num_batches)), seen.append, optimizer, scheduler, 4)
    expect.equal("micro-batches seen", seen, list(range(num_batches)), source="each once, in order")
    updates = 2 if num_batches == 8 else 3
    want = [[0.5**t] for t in range(updates)]
    expect.equal(
        "lr used at each update", optimizer.used, want, source="update t uses 0.5^t, the first one 1"
    )
    expect.equal(
        "next_update", scheduler.next_update, updates, source="the schedule has moved once per update"
    )
    expect.equal("updates returned", made, updates, source=f"{num_batches} micro-batches in windows of 4")
