"""The solutions of lessons 06–10 agree with torch and with training/ on the same real work."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from testcases.agreement.work import assert_same_bits, make_gpt, train
from training.losses import count_tokens, token_loss
from training.model import GPT
from training.optimizer import configure_optimizer
from training.scheduler import create_scheduler
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


def test_lesson09_resumed_gpt_of_training_is_bit_identical(tmp_path):
    from solutions.stage02_pretrain.lesson09_exact_resume import checkpoint, sampler

    tokens = torch.randint(256, (22, 17), generator=torch.Generator().manual_seed(1))

    def run(stop=None, resume=None):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        model = make_gpt(dropout=0.1)
        optimizer = configure_optimizer(model, "adamw", lr=0.01, weight_decay=0.1)
        scheduler = create_scheduler("cosine", optimizer, 2, 8)
        order = sampler.ResumableSampler(len(tokens), seed=3)
        loader = sampler.make_loader(TensorDataset(tokens), 4, order)
        losses, first = [], 0
        if resume is not None:
            progress = checkpoint.restore(checkpoint.load(resume), model, optimizer, scheduler, sampler=order)
            losses, first = progress["losses"], progress["epoch"]
        for epoch in range(first, 2):
            order.set_epoch(epoch)
            for (rows,) in loader:
                loss = token_loss(model(rows[:, :-1]), rows[:, 1:]) / count_tokens(rows[:, 1:])
                loss.backward()
                losses.append(loss.item())
                order.advance(len(rows))
                if len(losses) % 3 == 0:
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad(set_to_none=True)
                if len(losses) == stop:
                    state = checkpoint.capture(
                        model, optimizer, scheduler, sampler=order, epoch=epoch, losses=losses
                    )
                    checkpoint.save(state, tmp_path / "run.pt")
                    return None
        return losses, model

    losses, model = run()
    for stop in (1, 6, 8):
        run(stop=stop)
        resumed_losses, resumed = run(resume=tmp_path / "run.pt")
        assert resumed_losses == losses, stop
        for param, other in zip(resumed.parameters(), model.parameters(), strict=True):
            assert torch.equal(param, other), stop


def test_lesson09_sampler_and_loader_give_torchs_batches():
    from solutions.stage02_pretrain.lesson09_exact_resume import sampler

    order = sampler.ResumableSampler(11, seed=3)
    for epoch in range(3):
        order.set_epoch(epoch)
        whole = list(order)
        got = [rows.tolist() for (rows,) in sampler.make_loader(TensorDataset(torch.arange(11)), 4, order)]
        assert got == list(BatchSampler(whole, 4, drop_last=False))
        assert got == [r.tolist() for (r,) in DataLoader(TensorDataset(torch.arange(11)), 4, sampler=whole)]
        order.advance(11)


def loss_of(model: GPT) -> torch.nn.Module:
    """A module whose call is the mean loss of a batch: the interface of lesson 08."""

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch):
            logits = self.model(batch["input_ids"])
            return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    return Loss()


def test_lesson08_trainer_trains_a_gpt_like_training(loaders, tmp_path):
    """Windows of 3, 3, 3 and 2 batches with equal token counts, clipping, a schedule: two epochs."""
    from solutions.stage02_pretrain.lesson08_checkpoint_trainer.trainer import Trainer as LessonTrainer

    batches = list(loaders()[0])[:-1]  # without the small last one: lesson 08 does not see token counts
    ours, theirs = make_gpt(), make_gpt()

    def build(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)

    config = {"accumulation_steps": 3, "max_grad_norm": 0.5, "save_dir": str(tmp_path)}
    trainer = LessonTrainer(loss_of(ours), *build(ours), config)
    for _ in range(2):
        trainer.train_epoch(batches)
    optimizer, scheduler = build(theirs)
    options = {"scheduler": scheduler, "max_epochs": 2, "grad_accum_steps": 3, "max_grad_norm": 0.5}
    reference = Trainer(theirs, optimizer, batches, **options)
    reference.train()
    assert trainer.global_step == reference.global_step == 2 * 4
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(param, other, atol=1e-5, rtol=1e-4, msg=name)


def test_lesson08_checkpoint_of_a_gpt_goes_on_in_plain_torch(loaders, tmp_path):
    """Saved by the lesson, read by torch.load: a loop by hand continues it to the lesson's own bits."""
    from solutions.stage02_pretrain.lesson08_checkpoint_trainer.trainer import Trainer as LessonTrainer

    batches = list(loaders()[0])
    ours, theirs = make_gpt(), GPT(make_gpt().config)
    path = tmp_path / "epoch_1.pt"
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    trainer = LessonTrainer(loss_of(ours), optimizer, None, {"save_dir": str(tmp_path)})
    trainer.train_epoch(batches)
    trainer.save_checkpoint(path)
    saved = {name: param.detach().clone() for name, param in ours.named_parameters()}
    trainer.train_epoch(batches)

    state = torch.load(path, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, len(batches))
    loss_of(theirs).load_state_dict(state["model_state_dict"])
    for name, param in theirs.named_parameters():
        assert torch.equal(param, saved[name]), name
    other = torch.optim.AdamW(theirs.parameters(), lr=3e-3)
    other.load_state_dict(state["optimizer_state_dict"])
    train(theirs, other, batches)
    assert_same_bits(ours, theirs)
