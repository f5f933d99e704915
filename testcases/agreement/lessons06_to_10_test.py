"""The solutions of lessons 06–10 agree with torch and with training/ on the same real work."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from testcases.agreement.work import assert_same_bits, make_gpt, train
from training.data import TokenDataset, load_text, make_loader, train_val_split
from training.losses import count_tokens, token_loss
from training.model import GPT, GPTConfig
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


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_lesson07_scaler_gives_the_scales_and_weights_of_torch(kind):
    from solutions.stage02_pretrain.lesson07_mixed_precision.loss_scaler import LossScaler

    options = {"init_scale": 2.0**12, "growth_interval": 5}
    runs = []
    for scaler in (LossScaler(**options), torch.amp.GradScaler("cpu", **options)):
        param = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        make = torch.optim.AdamW if kind == "adamw" else torch.optim.SGD
        runs.append((scaler, param, make([param], lr=0.1)))
    generator = torch.Generator().manual_seed(0)
    for update in range(200):
        x = torch.randn(8, generator=generator)
        for scaler, param, optimizer in runs:
            optimizer.zero_grad()
            scaler.scale((param * x).sum().square()).backward()
            if update % 17 in (3, 4, 9):
                param.grad[update % 8] = torch.inf
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([param], 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert runs[0][0].state_dict() == runs[1][0].state_dict(), update
        assert torch.equal(runs[0][1], runs[1][1]), update


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05), ("fp16", 0.05)])
def test_lesson07_trainer_has_the_losses_of_training(precision, tolerance):
    from solutions.stage02_pretrain.lesson07_mixed_precision.loss_scaler import LossScaler
    from solutions.stage02_pretrain.lesson07_mixed_precision.trainer import TrainerFromScratch

    ids = torch.randint(17, (10, 4, 9), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": row[:, :-1], "labels": row[:, 1:]} for row in ids]

    def run(trainer_class, **options) -> list[float]:
        torch.manual_seed(1)
        model = GPT(GPTConfig(vocab_size=17, block_size=8, n_layer=1, n_head=2, n_embd=16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        trainer = trainer_class(
            model, optimizer, batches, max_epochs=3, max_grad_norm=0.5, log_interval=1, **options
        )
        return [row["train_loss"] for row in trainer.train() if "train_loss" in row]

    want = run(Trainer, grad_accum_steps=4)
    # fp16 begins at a scale that does not overflow, so that no update is left out
    scaler = LossScaler(init_scale=2.0**10) if precision == "fp16" else None
    got = run(TrainerFromScratch, accumulation_steps=4, precision=precision, scaler=scaler)
    assert len(got) == 9
    assert got == pytest.approx(want, abs=tolerance)
    assert got[-1] < got[0]


def test_lesson10_pretrain_trainer_agrees_with_training():
    """Dropout, K = 3, a short last window, clipping and a schedule: the rows of training.Trainer, two epochs."""
    from solutions.stage02_pretrain.lesson10_trainer_system.trainer import PretrainTrainer

    tokens, _ = train_val_split(load_text()[:40_000], val_fraction=0.1, block_size=32)
    # 10 micro-batches, the last one short
    windows = torch.utils.data.Subset(TokenDataset(tokens, 32), range(8 * 10 - 3))

    def build():
        model = make_gpt(dropout=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.8**update)
        torch.manual_seed(12)
        return model, optimizer, scheduler, make_loader(windows, 8, shuffle=True, seed=3)

    model, optimizer, scheduler, loader = build()
    ours = PretrainTrainer(model, optimizer, scheduler, max_grad_norm=0.5, gradient_accumulation_steps=3)
    rows = ours.train(loader, num_epochs=2)

    model, optimizer, scheduler, loader = build()
    options = {"max_epochs": 2, "grad_accum_steps": 3, "max_grad_norm": 0.5, "log_interval": 1}
    history = Trainer(model, optimizer, loader, scheduler=scheduler, **options).train()
    theirs = [row for row in history if "train_loss" in row]
    assert len(rows) == len(theirs) == 8
    for row, other in zip(rows, theirs, strict=True):
        assert (row["global_step"], row["count"]) == (other["global_step"], other["tokens"])
        # ours divides later: float32 rounding over 8 updates of AdamW
        assert abs(row["loss"] - other["train_loss"]) < 1e-3
        assert abs(row["grad_norm"] - other["grad_norm"]) < 1e-2
        assert abs(row["lr"] - other["lr"]) < 1e-12
    for (name, param), other in zip(ours.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(param, other, atol=5e-3), name


def test_lesson10_dpo_trainer_agrees_with_the_formula_in_torch():
    """A GPT with dropout 0.1 and answers of different lengths: the first loss is ln 2, then a loop by hand."""
    from solutions.stage02_pretrain.lesson10_trainer_system.losses import build_sft_example, collate
    from solutions.stage02_pretrain.lesson10_trainer_system.trainer import DPOTrainer

    model = make_gpt(dropout=0.1)
    policy, ref = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    prompt = list(b"The answer is ")
    chosen, rejected = [list(b"short"), list(b"a longer one")], [list(b"no"), list(b"nothing")]
    pair = {
        name: collate([build_sft_example(prompt, text, 0, 32) for text in texts], pad_id=0)
        for name, texts in (("chosen", chosen), ("rejected", rejected))
    }

    def log_pi(module, texts):
        found = []
        for text in texts:  # no filling and no mask: the answer's own positions
            ids = torch.tensor([*prompt, *text, 0])
            log_probs = F.log_softmax(module(ids[None, :-1])[0], dim=-1)[len(prompt) - 1 :]
            found.append(log_probs[range(len(text) + 1), ids[len(prompt) :]].sum())
        return torch.stack(found)

    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    want = []
    for _ in range(4):
        ratios = [log_pi(policy, t) - log_pi(ref, t).detach() for t in (chosen, rejected)]
        loss = -F.logsigmoid(0.3 * (ratios[0] - ratios[1])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        want.append(loss.item())

    trainer = DPOTrainer(model, torch.optim.SGD(model.parameters(), lr=0.5), max_grad_norm=None, beta=0.3)
    got = [row["loss"] for row in trainer.train([pair], num_epochs=4)]
    assert abs(got[0] - 0.693147) < 1e-5
    assert all(abs(a - b) < 1e-3 for a, b in zip(got, want, strict=True)), (got, want)
    assert want[-1] < want[0]
    for param, other in zip(trainer.ref_model.parameters(), ref.parameters(), strict=True):
        assert torch.equal(param, other)
