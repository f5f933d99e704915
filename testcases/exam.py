"""The program of the exam: a small GPT trained with the student's own pieces, from five lessons.

Lesson 02's AdamW, 04's schedule, 06's windows and clipping, 07's loss scaler, 09's sampler and checkpoint.
Everything that may leak from one run into the next is on: dropout, shuffling, noise drawn when a sample is fetched,
a loss scale that overflows, a partial last window.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.losses import count_tokens, token_loss
from training.model import GPT, GPTConfig

SAMPLES, MICRO_BATCH, EPOCHS, VOCABULARY, LENGTH = 11, 2, 2, 32, 8
MICRO_STEPS = EPOCHS * -(-SAMPLES // MICRO_BATCH)  # the last micro-batch of an epoch is shorter
OVERFLOW_AT = (2, 5)  # at these updates one gradient becomes inf
IGNORED = -100


def make_model(dropout: float = 0.1, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT:
    """A GPT of two layers, small enough for thousands of updates a minute."""
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "block_size": LENGTH, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTConfig(**shape, dropout=dropout)).to(dtype)


def make_batch(rng: torch.Generator, rows: int, targets: int) -> dict[str, Tensor]:
    """A micro-batch with exactly `targets` labels that count."""
    tokens = torch.randint(VOCABULARY, (rows, LENGTH + 1), generator=rng)
    labels = tokens[:, 1:].clone()
    hidden = torch.randperm(labels.numel(), generator=rng)[targets:]
    labels.view(-1)[hidden] = IGNORED
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": labels}


class NoisyTokens(Dataset):
    """Rows of tokens; when a row is fetched, one of its tokens is replaced at random and some labels are dropped."""

    def __init__(self, seed: int, sample_generator: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(VOCABULARY, (SAMPLES, LENGTH + 1), generator=generator)
        self.seed, self.sample_generator, self.epoch = seed, sample_generator, 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = self.sample_generator(self.seed, self.epoch, index)
        row = self.rows[index].clone()
        row[int(torch.randint(LENGTH, (), generator=rng))] = int(torch.randint(VOCABULARY, (), generator=rng))
        labels = row[1:].masked_fill(torch.rand(LENGTH, generator=rng) < 0.3, IGNORED)
        labels[-1] = row[-1]  # at least one target
        return {"index": index, "input_ids": row[:-1], "labels": labels}


class Killed(Exception):
    """Ends a run in this process in the place of a real kill."""


def die() -> None:
    raise Killed


@dataclass
class Recipe:
    """How a run trains; the reference, the killed and the resumed run have the same."""

    accumulation_steps: int = 4
    max_grad_norm: float = 0.5
    lr: float = 0.05
    init_scale: float = 1024.0
    seed: int = 0


class Run:
    """A training run over the student's stack. It starts from `checkpoint` if that file exists."""

    def __init__(
        self, stack: Any, device: torch.device, recipe: Recipe, checkpoint: Path | None = None
    ) -> None:
        self.stack, self.device, self.recipe, self.checkpoint = stack, device, recipe, checkpoint
        self.model = make_model(seed=recipe.seed).to(device)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = stack.lesson02.optimizer.AdamWFromScratch(groups, lr=recipe.lr)
        schedule = stack.lesson04.scheduler.WarmupCosine
        self.scheduler = schedule(self.optimizer, warmup_steps=2, total_steps=MICRO_STEPS // 2, min_ratio=0.1)
        self.scaler = stack.lesson07.loss_scaler.LossScaler(init_scale=recipe.init_scale, growth_interval=2)
        self.sampler = stack.lesson09.sampler.ResumableSampler(SAMPLES, seed=recipe.seed)
        self.data = NoisyTokens(recipe.seed, stack.lesson09.sampler.sample_generator)
        self.loader = stack.lesson09.sampler.make_loader(self.data, MICRO_BATCH, self.sampler)
        self.epoch = self.global_step = self.micro_step = self.windows_done = 0
        self.window_tokens = 0
        self.ids: list[list[int]] = []
        self.losses: list[float] = []
        self.scales: list[float] = []
        self.lrs: list[float] = []
        if checkpoint is not None and checkpoint.exists():
            state = stack.lesson09.checkpoint.load(checkpoint)
            vars(self).update(stack.lesson09.checkpoint.restore(state, *self.parts()))

    def parts(self) -> tuple:
        return self.model, self.optimizer, self.scheduler, self.scaler, self.sampler

    def train(self, kill_after: int | None = None, kill: Callable[[], None] = lambda: None) -> None:
        """To the end; with `kill_after`, save after that many micro-steps, and call `kill` at once."""
        for epoch in range(self.epoch, EPOCHS):
            self.epoch = self.data.epoch = epoch
            self.sampler.set_epoch(epoch)
            for batch in self.loader:
                self.micro_batch(batch)
                if self.micro_step == self.recipe.accumulation_steps or self.sampler.position == SAMPLES:
                    self.update()
                if kill_after is not None and len(self.ids) == kill_after:
                    self.save()
                    kill()

    def micro_batch(self, batch: dict[str, Tensor]) -> None:
        """forward → scale → backward; the gradients add up."""
        logits = self.model(batch["input_ids"].to(self.device))  # (B, T, V)
        loss_sum = token_loss(logits, batch["labels"].to(self.device))
        self.scaler.scale(loss_sum).backward()
        self.window_tokens += count_tokens(batch["labels"])
        self.ids.append(batch["index"].tolist())
        self.losses.append(float(loss_sum.detach()))
        self.sampler.advance(len(batch["index"]))
        self.micro_step += 1

    def update(self) -> None:
        """unscale → normalise → clip → step → update → zero_grad; a skipped step leaves the schedule alone."""
        if self.windows_done in OVERFLOW_AT:
            next(self.model.parameters()).grad.view(-1)[0] = torch.inf
        self.scaler.unscale_(self.optimizer)
        for param in self.model.parameters():
            param.grad.div_(self.window_tokens)
        self.stack.lesson06.gradients.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.lrs.append(self.optimizer.param_groups[0]["lr"])
        if self.scaler.step(self.optimizer):
            self.scheduler.step()
            self.global_step += 1
        self.scaler.update()
        self.scales.append(self.scaler.get_scale())
        self.optimizer.zero_grad(set_to_none=True)
        self.micro_step = self.window_tokens = 0
        self.windows_done += 1

    def save(self) -> None:
        names = ("epoch", "global_step", "micro_step", "windows_done", "window_tokens")
        history = {name: getattr(self, name) for name in ("ids", "losses", "scales", "lrs")}
        counters = {name: getattr(self, name) for name in names}
        state = self.stack.lesson09.checkpoint.capture(*self.parts(), **counters, **history)
        self.stack.lesson09.checkpoint.save(state, self.checkpoint)

    def result(self) -> dict[str, Any]:
        """All in which two equal runs agree, in the order in which to look for the first difference."""
        named = dict(self.model.named_parameters())
        state = self.optimizer.state_dict()
        return {
            "sample ids": self.ids,
            "losses": self.losses,
            "loss scales": self.scales,
            "learning rates": self.lrs,
            "updates": self.global_step,
            "weights": {name: param.detach().cpu() for name, param in named.items()},
            "optimizer": {str(i): {k: v.cpu() for k, v in s.items()} for i, s in state["state"].items()},
            "scaler": self.scaler.state_dict(),
            "random numbers": float(torch.rand(())),
        }


def main() -> None:
    """`python -m testcases.exam IMPL CHECKPOINT RESULT DEVICE [KILL_AFTER]`: a run in a process of its own."""
    from course import lazy_dynamo
    from course.implementation import Implementation, Stack

    impl, checkpoint, result, device, *kill = sys.argv[1:]
    lazy_dynamo.install()
    torch.set_num_threads(1)
    run = Run(Stack(Implementation(impl)), torch.device(device), Recipe(), Path(checkpoint))
    run.train(int(kill[0]) if kill else None, kill=lambda: os.kill(os.getpid(), signal.SIGKILL))
    torch.save(run.result(), result)


if __name__ == "__main__":
    main()
