"""The solutions of the lessons agree with torch and with training/ on the same real work.

The work: a small GPT of training/model.py learns the embedded corpus for some steps.
"""

import math

import pytest
import torch

from testcases.agreement.work import STEPS, assert_same_bits, make_gpt, train
from training.model import GPT
from training.optimizer import configure_optimizer
from training.scheduler import create_scheduler
from training.trainer import Trainer


def groups_of(model: GPT) -> list[dict]:
    """Two groups with settings of their own, as in real training."""
    matrices = [param for param in model.parameters() if param.ndim >= 2]
    gains = [param for param in model.parameters() if param.ndim < 2]
    return [{"params": matrices, "lr": 0.03}, {"params": gains, "weight_decay": 0.0}]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9, "dampening": 0.2}, {"momentum": 0.9, "nesterov": True}],
    ids=["plain", "momentum", "nesterov"],
)
def test_lesson01_sgd_trains_a_gpt_to_the_same_bits_as_torch(loaders, options, foreach):
    from solutions.stage01_optimizers.lesson01_sgd.optimizer import SGDFromScratch

    ours, theirs = make_gpt(dropout=0.1), make_gpt(dropout=0.1)
    options = {"lr": 0.05, "weight_decay": 0.01, **options}
    losses = train(ours, SGDFromScratch(groups_of(ours), **options), loaders()[0])
    want = train(theirs, torch.optim.SGD(groups_of(theirs), foreach=foreach, **options), loaders()[0])
    assert losses == want
    assert losses[-1] < losses[0] - 0.1, "it learns"
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("foreach", [False, True])
def test_lesson02_adamw_trains_a_gpt_to_the_same_bits_as_torch(loaders, foreach):
    from solutions.stage01_optimizers.lesson02_adamw.optimizer import AdamWFromScratch

    ours, theirs = make_gpt(dropout=0.1), make_gpt(dropout=0.1)
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "foreach": foreach}
    losses = train(ours, AdamWFromScratch(groups_of(ours), **options), loaders()[0])
    want = train(theirs, torch.optim.AdamW(groups_of(theirs), **options), loaders()[0])
    assert losses == want
    assert losses[-1] < losses[0] - 0.1, "it learns"
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("optimizer_type", ["adamw", "adam", "sgd"])
def test_lesson03_groups_are_those_of_training(optimizer_type):
    from solutions.stage01_optimizers.lesson03_param_groups import optimizer as lesson

    model = make_gpt()
    model.blocks[0].requires_grad_(False)
    names = {param: name for name, param in model.named_parameters()}
    groups = [
        [
            ([names[param] for param in group["params"]], group["lr"], group["weight_decay"])
            for group in configure(model, optimizer_type, lr=0.25, weight_decay=0.5).param_groups
        ]
        for configure in (lesson.configure_optimizer, configure_optimizer)
    ]
    assert groups[0] == groups[1]
    assert len(groups[0]) == 2


def test_lesson03_optimizer_trains_as_that_of_training(loaders):
    from solutions.stage01_optimizers.lesson03_param_groups import optimizer as lesson

    ours, theirs = make_gpt(), make_gpt()
    losses = train(ours, lesson.configure_optimizer(ours, "sgd", lr=0.1, weight_decay=0.5), loaders()[0])
    assert losses == train(theirs, configure_optimizer(theirs, "sgd", lr=0.1, weight_decay=0.5), loaders()[0])
    assert_same_bits(ours, theirs)


def rates(optimizer: torch.optim.Optimizer, scheduler, updates: int) -> list[list[float]]:
    used = []
    for _ in range(updates):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return used


def two_rates() -> torch.optim.SGD:
    model = make_gpt()
    return torch.optim.SGD(groups_of(model), lr=0.2)


@pytest.mark.parametrize(
    ("warmup_steps", "total_steps", "min_ratio"),
    [(0, 20, 0.1), (5, 20, 0.0), (7, 30, 0.1), (20, 20, 0.5), (0, 1, 0.1)],
)
def test_lesson04_warmup_cosine_gives_the_rates_of_training(warmup_steps, total_steps, min_ratio):
    from solutions.stage01_optimizers.lesson04_lr_schedules.scheduler import WarmupCosine

    ours, theirs = two_rates(), two_rates()
    got = rates(ours, WarmupCosine(ours, warmup_steps, total_steps, min_ratio), total_steps + 3)
    want = rates(
        theirs, create_scheduler("cosine", theirs, warmup_steps, total_steps, min_ratio), total_steps + 3
    )
    for update, (got_rates, want_rates) in enumerate(zip(got, want, strict=True)):
        # the same formula, multiplied out in another order: float64 rounding
        assert got_rates == pytest.approx(want_rates, rel=1e-12), update


@pytest.mark.parametrize("warmup_steps", [2, 6])
def test_lesson04_one_cycle_gives_the_rates_of_training(warmup_steps):
    from solutions.stage01_optimizers.lesson04_lr_schedules.scheduler import OneCycle

    ours, theirs = two_rates(), two_rates()
    final_div_factor = 1 / (0.1 * warmup_steps)  # the floor is a share of the first rate there
    lesson = OneCycle(ours, 20, warmup_steps / 20, div_factor=warmup_steps, final_div_factor=final_div_factor)
    got = rates(ours, lesson, 23)
    want = rates(theirs, create_scheduler("onecycle", theirs, warmup_steps, 20, min_lr_ratio=0.1), 23)
    for update, (got_rates, want_rates) in enumerate(zip(got, want, strict=True)):
        # the same formula, multiplied out in another order: float64 rounding
        assert got_rates == pytest.approx(want_rates, rel=1e-12), update


def test_lesson05_trainer_has_the_losses_and_weights_of_training(loaders):
    from solutions.stage02_pretrain.lesson05_training_loop.trainer import TrainerFromScratch

    def run(trainer_class) -> tuple[GPT, list[dict]]:
        model = make_gpt(dropout=0.1)
        optimizer = configure_optimizer(model, "adamw", lr=0.01, weight_decay=0.1)
        scheduler = create_scheduler("cosine", optimizer, 3, 2 * STEPS)
        torch.manual_seed(12)
        train_loader, val_loader = loaders()
        trainer = trainer_class(
            model, optimizer, train_loader, val_loader, scheduler=scheduler, max_epochs=2, log_interval=1
        )
        return model, trainer.train()

    ours, our_rows = run(TrainerFromScratch)
    theirs, their_rows = run(Trainer)
    for key in ("train_loss", "val_loss", "val_perplexity", "lr", "tokens"):
        got, want = ([row[key] for row in rows if key in row] for rows in (our_rows, their_rows))
        # two ways to write the cross entropy, each a float32 sum over 256 tokens, and 24 updates apart at most
        assert got == pytest.approx(want, rel=1e-5), key
        assert len(got) == (2 if key.startswith("val") else 2 * STEPS)
    for param, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Adam divides by the gradient's own size, so that a rounding of tiny gradients reaches the weights
        torch.testing.assert_close(param, other, atol=1e-4, rtol=0)
    assert our_rows[-1]["val_loss"] < math.log(256) - 1.5, "it learns"
