"""Advanced tests of lesson 04: learning-rate schedules. Run: pytest testcases/advanced_test.py"""

import io
import math

import pytest
import torch
from torch.optim import lr_scheduler

CHAINED = "torch goes from rate to rate and gathers rounding; a closed form does not"
RESUME = "the run that was not interrupted"


def sgd(*lrs):
    """torch's SGD with one group of one number for each rate."""
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])


def rates_used(optimizer, scheduler, updates, metrics=None):
    """The rates that the optimizer holds when its step begins. `metrics`: one evaluation after each update."""
    used = []
    for update in range(updates):
        used.append([float(group["lr"]) for group in optimizer.param_groups])
        if (
            update == 0
        ):  # its weights do not matter here, but torch's schedules warn where there was never a step
            optimizer.step()
        scheduler.step(*([] if metrics is None else [metrics[update]]))
    return used


def compare_with_torch(expect, ours, theirs, updates, source, metrics=None):
    """`ours` and `theirs` are (optimizer, scheduler). Compares the rate used at every update."""
    got, want = rates_used(*ours, updates, metrics), rates_used(*theirs, updates, metrics)
    for update in range(updates):
        expect.close(
            "lr used", got[update], want[update], source=source, atol=1e-12, because=CHAINED, step=update
        )


def through_a_file(state):
    """What comes back after torch.save and the safe torch.load."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def make(lesson, name, optimizer):
    """One scheduler of each kind, with periods short enough to cross."""
    arguments = {
        "StepDecay": {"step_size": 5, "gamma": 0.3},
        "WarmupCosine": {"warmup_steps": 7, "total_steps": 25, "min_ratio": 0.1},
        "OneCycle": {"total_steps": 25, "pct_start": 0.35},
        "CosineWarmRestarts": {"T_0": 3, "T_mult": 2, "min_ratio": 0.05},
        "ReduceOnPlateau": {"factor": 0.3, "patience": 2, "cooldown": 2, "min_ratio": 0.001},
    }
    return getattr(lesson.scheduler, name)(optimizer, **arguments[name])


@pytest.mark.task("4.1", "4.5")
@pytest.mark.parametrize(("step_size", "gamma"), [(1, 0.9), (7, 0.1), (30, 0.5)])
def test_step_decay_equals_torch(lesson, expect, step_size, gamma):
    """100 updates of two groups."""
    ours, theirs = sgd(0.3, 0.02), sgd(0.3, 0.02)
    scheduler = lesson.scheduler.StepDecay(ours, step_size, gamma)
    reference = lr_scheduler.StepLR(theirs, step_size, gamma)
    compare_with_torch(expect, (ours, scheduler), (theirs, reference), 100, "torch's StepLR")


@pytest.mark.task("4.2", "4.5")
@pytest.mark.parametrize(
    ("warmup_steps", "total_steps", "min_ratio"), [(2, 60, 0.0), (10, 100, 0.1), (40, 41, 0.5)]
)
def test_warmup_cosine_equals_torch(lesson, expect, warmup_steps, total_steps, min_ratio):
    """All T updates, and the one after them, against LinearLR followed by CosineAnnealingLR."""
    ours, theirs = sgd(0.3), sgd(0.3)
    scheduler = lesson.scheduler.WarmupCosine(ours, warmup_steps, total_steps, min_ratio)
    warmup = lr_scheduler.LinearLR(theirs, 1 / warmup_steps, 1.0, total_iters=warmup_steps - 1)
    cosine = lr_scheduler.CosineAnnealingLR(theirs, total_steps - warmup_steps, eta_min=0.3 * min_ratio)
    reference = lr_scheduler.SequentialLR(theirs, [warmup, cosine], milestones=[warmup_steps])
    source = "torch's SequentialLR(LinearLR, CosineAnnealingLR)"
    compare_with_torch(expect, (ours, scheduler), (theirs, reference), total_steps + 1, source)


@pytest.mark.task("4.3", "4.5")
@pytest.mark.parametrize(
    ("total_steps", "pct_start", "div_factor", "final_div_factor"),
    [
        (100, 0.3, 25.0, 1e4),
        (37, 0.45, 10.0, 100.0),
        (20, 0.05001, 4.0, 1.0),
        (3, 0.3, 25.0, 1e4),
        (2, 0.9, 2.0, 2.0),
    ],
)
def test_one_cycle_equals_torch(lesson, expect, total_steps, pct_start, div_factor, final_div_factor):
    """All T updates of two groups; the peak lies on an update, between two, or before the first."""
    ours, theirs = sgd(0.3, 0.02), sgd(1.0, 1.0)
    scheduler = lesson.scheduler.OneCycle(ours, total_steps, pct_start, div_factor, final_div_factor)
    reference = lr_scheduler.OneCycleLR(
        theirs,
        max_lr=[0.3, 0.02],
        total_steps=total_steps,
        pct_start=pct_start,
        cycle_momentum=False,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    used = rates_used(ours, scheduler, total_steps)
    for update in range(total_steps):
        # The reference is read before its step: past its last update torch's scheduler would raise.
        want = [group["lr"] for group in theirs.param_groups]
        source = "torch's OneCycleLR(cycle_momentum=False)"
        expect.close("lr used", used[update], want, source=source, atol=1e-12, because=CHAINED, step=update)
        if update < total_steps - 1:
            theirs.step()
            reference.step()


@pytest.mark.task("4.4", "4.5")
@pytest.mark.parametrize(
    ("T_0", "T_mult", "min_ratio"), [(1, 1, 0.0), (10, 1, 0.1), (3, 2, 0.0), (2, 3, 0.25), (1, 5, 0.0)]
)
def test_warm_restarts_equal_torch(lesson, expect, T_0, T_mult, min_ratio):
    """260 updates: six cycles and more; with T_mult = 3 and 5 a logarithm would miss a restart."""
    ours, theirs = sgd(0.3), sgd(0.3)
    scheduler = lesson.scheduler.CosineWarmRestarts(ours, T_0, T_mult, min_ratio)
    reference = lr_scheduler.CosineAnnealingWarmRestarts(theirs, T_0, T_mult, eta_min=0.3 * min_ratio)
    source = "torch's CosineAnnealingWarmRestarts"
    compare_with_torch(expect, (ours, scheduler), (theirs, reference), 260, source)


@pytest.mark.task("4.6")
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(("patience", "cooldown"), [(0, 0), (2, 0), (1, 3)])
def test_plateau_equals_torch(lesson, expect, rng, mode, threshold_mode, patience, cooldown):
    """120 noisy positive metrics that improve and then stand still; the floor is a twentieth."""
    noise = torch.rand(120, generator=rng, dtype=torch.float64).tolist()
    falling = [1 + 3 * math.exp(-t / 15) + 0.3 * noise[t] for t in range(120)]
    metrics = falling if mode == "min" else [5 - x for x in falling]
    arguments = {"mode": mode, "factor": 0.5, "patience": patience, "threshold": 0.05}
    arguments |= {"threshold_mode": threshold_mode, "cooldown": cooldown}
    ours, theirs = sgd(0.3), sgd(0.3)
    scheduler = lesson.scheduler.ReduceOnPlateau(ours, min_ratio=0.05, **arguments)
    reference = lr_scheduler.ReduceLROnPlateau(theirs, min_lr=0.3 * 0.05, eps=0, **arguments)
    source = "torch's ReduceLROnPlateau(eps=0)"
    compare_with_torch(expect, (ours, scheduler), (theirs, reference), 120, source, metrics)


@pytest.mark.task("4.5")
def test_written_rates_equal_lambda_lr_bit_for_bit(lesson, expect):
    """Three groups, 40 updates; torch's LambdaLR is given the lesson's own factor."""
    ours, theirs = sgd(0.3, 0.02, 7.0), sgd(0.3, 0.02, 7.0)
    scheduler = lesson.scheduler.WarmupCosine(ours, warmup_steps=6, total_steps=30, min_ratio=0.1)
    reference = lr_scheduler.LambdaLR(theirs, lambda t: lesson.factors.warmup_cosine(t, 6, 30, 0.1))
    got, want = rates_used(ours, scheduler, 40), rates_used(theirs, reference, 40)
    for update in range(40):
        expect.equal(
            "lr used", got[update], want[update], source="torch's LambdaLR: initial_lr·f(t)", step=update
        )


@pytest.mark.task("4.5")
@pytest.mark.parametrize("name", ["StepDecay", "WarmupCosine", "OneCycle", "CosineWarmRestarts"])
def test_resumed_rates_equal_the_uninterrupted_ones(lesson, expect, name):
    """30 updates, saved before each of them: in the warmup, at the peak, on a restart, after the end."""
    optimizer = sgd(0.3, 0.02)
    scheduler = make(lesson, name, optimizer)
    states, used = [], []
    for _ in range(30):
        states.append(through_a_file(scheduler.state_dict()))
        used += rates_used(optimizer, scheduler, 1)
    for stop, state in enumerate(states):
        resumed = sgd(1.0, 1.0)
        scheduler = make(lesson, name, resumed)
        scheduler.load_state_dict(state)
        got = rates_used(resumed, scheduler, 30 - stop)
        expect.equal(f"{name}: lr used from update {stop} on", got, used[stop:], source=RESUME, step=stop)


@pytest.mark.task("4.5")
@pytest.mark.parametrize(
    ("order", "keeps_initial_lr"),
    [
        ("build, load optimizer, load schedule", True),
        ("build, load optimizer, load schedule", False),
        ("load optimizer, build, load schedule", True),
        ("load optimizer, build, load schedule", False),
        ("build, load schedule, load optimizer", True),
    ],
)
def test_resume_does_not_depend_on_the_order_of_loading(lesson, expect, order, keeps_initial_lr):
    """torch.optim.SGD and WarmupCosine, saved after 12 of 25 updates and loaded in several orders."""
    optimizer = sgd(0.3, 0.02)
    scheduler = make(lesson, "WarmupCosine", optimizer)
    rates_used(optimizer, scheduler, 12)
    saved, state = through_a_file(optimizer.state_dict()), through_a_file(scheduler.state_dict())
    want = rates_used(optimizer, scheduler, 15)
    if not keeps_initial_lr:  # as from an optimizer that saves only the keys that it knows
        for group in saved["param_groups"]:
            group.pop("initial_lr", None)

    resumed = sgd(0.3, 0.02)
    for action in order.split(", "):
        if action == "build":
            scheduler = make(lesson, "WarmupCosine", resumed)
        elif action == "load optimizer":
            resumed.load_state_dict(saved)
        else:
            scheduler.load_state_dict(state)
    for update, got in enumerate(rates_used(resumed, scheduler, 15)):
        expect.equal("lr used", got, want[update], source=f"{RESUME}; order: {order}", step=12 + update)


@pytest.mark.task("4.5")
def test_initial_rate_of_an_earlier_schedule_is_kept(lesson, expect):
    """Six updates of StepDecay from 0.8 end at 0.1; then WarmupCosine is put on the same optimizer."""
    optimizer = sgd(0.8)
    rates_used(optimizer, lesson.scheduler.StepDecay(optimizer, step_size=2, gamma=0.5), 6)
    scheduler = lesson.scheduler.WarmupCosine(optimizer, warmup_steps=4, total_steps=8)
    for update, (got, want) in enumerate(
        zip(rates_used(optimizer, scheduler, 4), (0.2, 0.4, 0.6, 0.8), strict=True)
    ):
        source = "the group began at 0.8: 0.8·(t + 1) / 4"
        expect.close(
            "lr used",
            got,
            [want],
            source=source,
            atol=1e-12,
            because="another order of operations",
            step=update,
        )


@pytest.mark.task("4.6")
def test_plateau_resumes_within_patience_and_cooldown(lesson, expect, rng):
    """40 evaluations with patience 2 and cooldown 2; saved before each of them, and continued."""
    metrics = (2 + torch.rand(40, generator=rng, dtype=torch.float64)).tolist()
    optimizer = sgd(0.3)
    scheduler = make(lesson, "ReduceOnPlateau", optimizer)
    states, used = [], []
    for metric in metrics:
        states.append(through_a_file(scheduler.state_dict()))
        used += rates_used(optimizer, scheduler, 1, [metric])
    expect.true(
        "the metrics make the rate fall several times",
        len({lr for (lr,) in used}) > 3,
        expected="more than 3 different rates",
        got=f"{len({lr for (lr,) in used})}",
    )
    for stop, state in enumerate(states):
        resumed = sgd(1.0)
        scheduler = make(lesson, "ReduceOnPlateau", resumed)
        scheduler.load_state_dict(state)
        got = rates_used(resumed, scheduler, 40 - stop, metrics[stop:])
        expect.equal(f"lr used from evaluation {stop} on", got, used[stop:], source=RESUME, step=stop)


@pytest.mark.task("4.6")
@pytest.mark.parametrize(
    ("mode", "metrics", "want"),
    [
        (
            "min",
            [math.nan, math.nan, 3.0, math.nan, math.nan, 1.0, 1.0],
            [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25],
        ),
        ("min", [math.inf, math.inf, 3.0, math.inf, 2.0, 2.0, 2.0], [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]),
        ("min", [-1.0, -1.0, -1.0, -1.05, -1.0, -2.0, -2.0], [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]),
        ("max", [-1.0, -1.0, -1.0, -0.95, -1.0, -0.5, -0.5], [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]),
        ("min", [0.0, 0.0, 0.0, -1.0, -1.0], [1, 1, 0.5, 0.5, 0.5]),
    ],
    ids=["nan", "inf", "negative", "negative-max", "zero"],
)
def test_plateau_survives_odd_metrics(lesson, expect, mode, metrics, want):
    """lr = 1, factor 0.5, patience 1, relative threshold 0.1: NaN, infinity, negative metrics, zero."""
    optimizer = sgd(1.0)
    scheduler = lesson.scheduler.ReduceOnPlateau(optimizer, mode=mode, factor=0.5, patience=1, threshold=0.1)
    for step, metric in enumerate(metrics):
        scheduler.step(torch.tensor(metric))
        source = f"metrics {metrics[: step + 1]}: better means past best by more than 0.1·|best|"
        expect.equal(
            "lr after the evaluation", scheduler.get_last_lr(), [want[step]], source=source, step=step
        )


@pytest.mark.task("4.3", "4.4")
def test_hard_places_of_one_cycle_and_restarts(lesson, expect):
    """A peak on update 0, where torch divides by zero; restarts at powers of 3 and 10, where a log is off."""
    for t, want in {0: 1.0, 9: 1e-3, 10: 1e-3}.items():
        got = lesson.factors.one_cycle(t, 10, 0.1, 10.0, 100.0)
        expect.close(
            "one cycle", got, want, source="peak at 0", atol=1e-12, because="order of operations", step=t
        )
    for T_mult in (3, 10):
        start = 0
        for cycle in range(6):
            length = T_mult**cycle
            got = lesson.factors.warm_restarts(start, 1, T_mult, 0.0)
            expect.equal(
                f"first factor of cycle {cycle}, T_mult {T_mult}", got, 1.0, source="a restart", step=start
            )
            last = lesson.factors.warm_restarts(start + length - 1, 1, T_mult, 0.0)
            want = (1 + math.cos(math.pi * (length - 1) / length)) / 2
            source = "(1 + cos πp) / 2 with p = (length − 1) / length"
            expect.close(
                "last factor of the cycle",
                last,
                want,
                source=source,
                atol=1e-12,
                because="rounding",
                step=start,
            )
            start += length


@pytest.mark.task("4.2", "4.5", "4.6")
@pytest.mark.parametrize(
    ("name", "good", "bad", "value"),
    [
        ("StepDecay", {"step_size": 2, "gamma": 0.5}, {"step_size": 0}, "0"),
        ("WarmupCosine", {"warmup_steps": 0, "total_steps": 5}, {"warmup_steps": 6}, "6"),
        ("WarmupCosine", {"warmup_steps": 0, "total_steps": 5}, {"min_ratio": 1.5}, "1.5"),
        ("CosineWarmRestarts", {"T_0": 2}, {"T_mult": 0.5}, "0.5"),
        ("ReduceOnPlateau", {"factor": 0.5}, {"mode": "down"}, "down"),
    ],
)
def test_refused_arguments_leave_the_optimizer_alone(lesson, expect, name, good, bad, value):
    """Two updates; then a bad argument on the same optimizer, and a state with another number of groups."""
    optimizer = sgd(0.3)
    scheduler = getattr(lesson.scheduler, name)(optimizer, **good)
    for metric in (5.0, 4.0):
        scheduler.step(*([metric] if name == "ReduceOnPlateau" else []))
    before = scheduler.get_last_lr()
    with expect.raises(ValueError, match=value, source=f"{bad} is out of range"):
        getattr(lesson.scheduler, name)(optimizer, **good | bad)
    with expect.raises(ValueError, match="2", source="a state of one group, an optimizer of two"):
        getattr(lesson.scheduler, name)(sgd(0.1, 0.2), **good).load_state_dict(scheduler.state_dict())
    expect.equal("lr", scheduler.get_last_lr(), before, source="the rate before the refused call")
    expect.equal("next_update", scheduler.next_update, 2, source="two updates were made")


@pytest.mark.task("4.7")
@pytest.mark.parametrize(("num_batches", "epochs"), [(8, 3), (10, 3), (3, 4)])
def test_last_update_of_the_run_is_one_step_from_the_floor(lesson, expect, num_batches, epochs):
    """Windows of 4, a parameter with gradient 1 per micro-batch; WarmupCosine planned with total_updates."""
    param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([param], lr=0.5)
    total = lesson.updates.total_updates(num_batches, 4, epochs)
    scheduler = lesson.scheduler.WarmupCosine(optimizer, warmup_steps=1, total_steps=total, min_ratio=0.1)
    used = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: used.append(opt.param_groups[0]["lr"]))

    def backward(micro_batch):
        (param * micro_batch).sum().backward()

    moved = [
        lesson.updates.train_epoch([1.0] * num_batches, backward, optimizer, scheduler, 4)
        for _ in range(epochs)
    ]
    expect.equal(
        "updates of each epoch", moved, [total // epochs] * epochs, source="a short window is an update"
    )
    expect.equal("updates in all", len(used), total, source="total_updates")
    want = [0.5 * lesson.factors.warmup_cosine(t, 1, total, 0.1) for t in range(total)]
    for update in range(total):
        expect.equal("lr used", used[update], want[update], source="0.5·f(t), once per update", step=update)
    expect.equal("rate after the run", scheduler.get_last_lr(), [0.5 * 0.1], source="the floor, 0.5·0.1")
    windows = [min(4, num_batches - start) for start in range(0, num_batches, 4)] * epochs
    distance = sum(lr * size for lr, size in zip(want, windows, strict=True))
    source = "−Σ lr·(micro-batches of the window): the gradient is cleared after every update"
    expect.close("parameter", param.item(), -distance, source=source, atol=1e-12, because="order of the sum")


@pytest.mark.task("4.7")
@pytest.mark.parametrize("bad_value", [math.inf, -math.inf, math.nan])
def test_skipped_window_moves_neither_weights_nor_schedule(lesson, expect, bad_value):
    """Six windows of 2 micro-batches; the second has a gradient that is not finite, the last one too."""
    param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([param], lr=1.0)
    scheduler = lesson.scheduler.StepDecay(optimizer, step_size=1, gamma=0.5)
    used = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: used.append(opt.param_groups[0]["lr"]))

    def backward(slope):
        grad = torch.full_like(param, slope)
        param.grad = grad if param.grad is None else param.grad + grad

    slopes = [1.0, 1.0, bad_value, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, bad_value]
    made = lesson.updates.train_epoch(slopes, backward, optimizer, scheduler, 2)
    source = "windows 1, 3, 4, 5 are updates 0, 1, 2, 3; windows 2 and 6 are skipped"
    expect.equal("lr used", used, [1.0, 0.5, 0.25, 0.125], source=source)
    expect.equal("updates returned", made, 4, source=source)
    expect.equal("next_update", scheduler.next_update, 4, source=source)
    expect.equal("parameter", param.item(), -2 * 1.875, source="−2·(1 + 0.5 + 0.25 + 0.125)")
