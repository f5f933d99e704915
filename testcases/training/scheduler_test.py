"""Tests of training/scheduler.py: the rate that each update really uses, read inside the optimizer's step."""

import io
import math

import pytest
import torch
from torch import nn

from training.scheduler import create_scheduler


def make_optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def used_rates(optimizer: torch.optim.Optimizer, scheduler, updates: int, group: int = 0) -> list[float]:
    """The rate of every update, seen by the update itself: a parameter with gradient 1 moves by it."""
    rates = []
    for _ in range(updates):
        for each in optimizer.param_groups:
            each["params"][0].grad = torch.ones(1)
        param = optimizer.param_groups[group]["params"][0]
        param.data.zero_()
        optimizer.step()
        rates.append(-param.item())
        scheduler.step()
    return rates


COSINE = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("cosine", [0.5, 1.0, *COSINE, 0.1, 0.1]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("Cosine", [0.5, 1.0, *COSINE, 0.1, 0.1]),
    ],
)
def test_updates_use_the_rates_of_the_formula_and_stay_at_the_floor(name, want):
    optimizer = make_optimizer(2.0)
    scheduler = create_scheduler(name, optimizer, warmup_steps=2, total_steps=6, min_lr_ratio=0.1)
    got = used_rates(optimizer, scheduler, 8)
    assert got == pytest.approx([2.0 * factor for factor in want], rel=1e-6)  # the parameter is float32


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "onecycle"])
@pytest.mark.parametrize("warmup_steps", [1, 3, 10])
def test_first_update_uses_one_part_of_warmup_and_no_update_more_than_the_peak(name, warmup_steps):
    optimizer = make_optimizer(0.5)
    scheduler = create_scheduler(name, optimizer, warmup_steps, total_steps=10, min_lr_ratio=0.2)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.5 / warmup_steps)
    assert rates[warmup_steps - 1] == pytest.approx(0.5), "the W-th update has the whole rate"
    assert max(rates) <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "onecycle"])
def test_without_warmup_the_first_update_is_not_zero(name):
    optimizer = make_optimizer(0.5)
    create_scheduler(name, optimizer, warmup_steps=0, total_steps=4)
    assert 0.4 < optimizer.param_groups[0]["lr"] <= 0.5


@pytest.mark.parametrize("min_lr_ratio", [0.01, 0.25])
def test_onecycle_equals_torch_and_stays_at_the_floor_past_its_end(min_lr_ratio):
    ours, theirs = make_optimizer(0.5), make_optimizer(0.5)
    scheduler = create_scheduler("onecycle", ours, 3, total_steps=8, min_lr_ratio=min_lr_ratio)
    peak = {"max_lr": 0.5, "total_steps": 8, "pct_start": 3 / 8, "div_factor": 3}
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        theirs, **peak, final_div_factor=1 / (3 * min_lr_ratio), cycle_momentum=False
    )
    want = used_rates(theirs, oracle, 8)
    # torch anneals between absolute rates: float64 rounding, seen through a float32 parameter
    assert used_rates(ours, scheduler, 8) == pytest.approx(want, rel=1e-6)
    assert used_rates(ours, scheduler, 2) == pytest.approx([0.5 * min_lr_ratio] * 2, rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_each_group_is_scaled_from_its_own_rate(name):
    optimizer = make_optimizer(1.0, 0.01)
    scheduler = create_scheduler(name, optimizer, 2, 6)
    for _ in range(6):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == pytest.approx(100 * second, rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "onecycle"])
@pytest.mark.parametrize("stop", [1, 5])
def test_state_continues_in_the_middle_and_loads_safely(name, stop):
    whole_optimizer = make_optimizer(0.5)
    whole = used_rates(whole_optimizer, create_scheduler(name, whole_optimizer, 3, 10), 9)
    optimizer = make_optimizer(0.5)
    scheduler = create_scheduler(name, optimizer, 3, 10)
    start = used_rates(optimizer, scheduler, stop)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), scheduler.state_dict()), file)
    file.seek(0)
    optimizer_state, scheduler_state = torch.load(file, weights_only=True)
    optimizer = make_optimizer(0.5)
    scheduler = create_scheduler(name, optimizer, 3, 10)
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(scheduler_state)
    assert start + used_rates(optimizer, scheduler, 9 - stop) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 1, 2), "unknown scheduler 'cosin': did you mean 'cosine'?"),
        (
            ("plateau", 1, 2),
            "unknown scheduler 'plateau': known are ['constant', 'cosine', 'linear', 'onecycle']",
        ),
        (("cosine", 1, 0), "total_steps must be >= 1, got 0"),
        (("cosine", 3, 2), "warmup_steps must be in [0, total_steps=2], got 3"),
        (("cosine", -1, 2), "warmup_steps must be in [0, total_steps=2], got -1"),
        (("cosine", 1, 2, 1.5), "min_lr_ratio must be in [0, 1], got 1.5"),
    ],
)
def test_bad_argument_is_refused_with_its_value(arguments, message):
    name, *numbers = arguments
    with pytest.raises(ValueError) as caught:
        create_scheduler(name, make_optimizer(0.1), *numbers)
    assert str(caught.value) == message
