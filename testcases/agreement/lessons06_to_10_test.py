"""The solutions of lessons 06–10 agree with torch and with training/ on the same real work."""

import math

import pytest
import torch
import torch.nn.functional as F

from testcases.agreement.work import assert_same_bits, make_gpt
from training.trainer import Trainer


def test_lesson06_clipping_gives_a_gpt_the_gradients_that_torch_clips():
    from solutions.stage02_pretrain.lesson06_accumulation_clipping.gradients import (
        clip_grad_norm_,
        clip_grad_value_,
    )

    ours, theirs = make_gpt(), make_gpt()
    ids = torch.randint(0, 96, (4, 33), generator=torch.Generator().manual_seed(5))
    for model in (ours, theirs):
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for norm_type, max_norm in [(2.0, 0.5), (math.inf, 0.01), (1.0, 0.1), (2.0, 100.0)]:
        norm = clip_grad_norm_(ours.parameters(), max_norm, norm_type)
        want = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm, norm_type)
        assert torch.equal(norm, want)
    clip_grad_value_(ours.parameters(), 1e-5)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), 1e-5)
    for param, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(param.grad, other.grad)


@pytest.mark.parametrize("max_grad_norm", [None, 0.7])
def test_lesson06_trainer_trains_a_gpt_like_the_production_trainer(loaders, max_grad_norm):
    from solutions.stage02_pretrain.lesson06_accumulation_clipping.trainer import TrainerFromScratch

    runs = []
    for kind in (TrainerFromScratch, Trainer):
        model = make_gpt(dropout=0.1)
        train_loader, val_loader = loaders()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)
        steps = "accumulation_steps" if kind is TrainerFromScratch else "grad_accum_steps"
        options = {"max_epochs": 2, "scheduler": schedule, "log_interval": 1, steps: 5}
        trainer = kind(model, optimizer, train_loader, val_loader, max_grad_norm=max_grad_norm, **options)
        torch.manual_seed(12)
        runs.append((model, trainer.train()))
    (ours, history), (theirs, want) = runs
    assert_same_bits(ours, theirs)
    for name in ("global_step", "train_loss", "grad_norm", "lr", "tokens", "val_loss"):
        assert [r[name] for r in history if name in r] == [r[name] for r in want if name in r], name
    assert [r["global_step"] for r in history if "lr" in r] == [1, 2, 3, 4, 5, 6]
